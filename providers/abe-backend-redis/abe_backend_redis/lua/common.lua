-- Shared by every script. KEYS[1] is the namespace's index; all other keys are derived from it and
-- lie in its slot, because they begin with the same hash tag. '#' occurs in no key or group name.
--
-- Redis undoes nothing when a script fails half-way, as for a right that its user lacks. So what
-- moves a message first puts it where it goes, and only then takes it from where it was.
--
--   log                 index: one entry per message (k key, d delayed, g only for this group,
--                       o id it was first published under); the consumer groups are on it
--   stream:KEY          what was published under KEY (p payload, h headers), same id as in the log
--   dirty               keys whose stream begins with payloads of messages no longer in the log
--   due                 when delayed messages become visible, in ms
--   parked:G            messages of group G read off the log and in nobody's hands: id -> attempts
--   ready:G, ready:G#K  of those, the ones that can be taken: all, and those of key K
--   keys:G              the keys K for which ready:G#K exists
--   later:G             of those, the ones that wait: id scored by its time
--   sweep:G             when a lease may next lapse
--   epoch:G             begins with the time at which the group was made, and grows whenever a lease
--                       has lapsed: while it is the same, every message handed over still belongs
--                       to whom it was handed to
--   dead:G              dead letters
--   wake:G              gets an entry when waiting consumers should look again
--   kept                settled messages have been kept, so the log's beginning may hold some
--   gone:G              G was deleted on purpose, not lost with the data
--   begun:G             how often handling of a message began: id -> count and attempt of the last
--   answer:CONSUMER     which messages its latest answer handed over: number of the answer, first
--                       and last id read off the log, other ids; empty once that answer was recalled
local LOG = KEYS[1]
local B = string.sub(LOG, 1, -4)
local G = ARGV[1]
local PARKED, READY, KEYS_READY = B .. 'parked:' .. G, B .. 'ready:' .. G, B .. 'keys:' .. G
local LATER, SWEEP, DEAD = B .. 'later:' .. G, B .. 'sweep:' .. G, B .. 'dead:' .. G
local WAKE, GONE, DUE = B .. 'wake:' .. G, B .. 'gone:' .. G, B .. 'due'
local KEPT, EPOCH, DIRTY = B .. 'kept', B .. 'epoch:' .. G, B .. 'dirty'
local BEGUN, ANSWER = B .. 'begun:' .. G, B .. 'answer:'
local call = redis.call

-- Messages of the group that something other than abe has deleted: trimmed, or evicted.
local vanished, keyless = 0, {}

-- Out of memory, Redis refuses only the first write of a script. This one needs none, so consumers
-- go on, which is what frees memory.
local function write_first() call('HDEL', PARKED, '') end

local function clock()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function parse(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local sub = string.sub

local function after(a, b)
  -- Milliseconds have 13 digits from 2001 to 2286.
  if sub(a, 14, 14) == '-' and sub(b, 14, 14) == '-' then
    local ams, bms = sub(a, 1, 13), sub(b, 1, 13)
    if ams ~= bms then return ams > bms end
    return tonumber(sub(a, 15)) > tonumber(sub(b, 15))
  end
  local ams, aseq = parse(a)
  local bms, bseq = parse(b)
  return ams > bms or (ams == bms and aseq > bseq)
end

-- Ids in order as exact doubles, until the year 2089.
local function score(id)
  local ms, seq = parse(id)
  return string.format('%.0f', (ms - 1577836800000) * 4096 + math.min(seq, 4095))
end

local function fields(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

local function entry_of(id)
  local found = call('XRANGE', LOG, id, id)[1]
  local entry = found and fields(found[2])
  return entry and entry.k and entry
end

local function body_of(key, id)
  local found = call('XRANGE', B .. 'stream:' .. key, id, id)[1]
  local body = found and fields(found[2])
  return body and body.p and body
end

local function all_groups()
  local found = {}
  if call('EXISTS', LOG) == 1 then
    for _, row in ipairs(call('XINFO', 'GROUPS', LOG)) do
      local g = fields(row)
      g.parks = call('EXISTS', B .. 'parked:' .. g.name) == 1
      found[#found + 1] = g
    end
  end
  return found
end

local function group_named(name)
  for _, g in ipairs(all_groups()) do
    if g.name == name then return g end
  end
end

-- Makes a group, which sees everything that is retained.
local function make(name)
  call('XGROUP', 'CREATE', LOG, name, '0', 'MKSTREAM')
  call('SET', B .. 'epoch:' .. name, clock())
end

-- Makes the groups at ARGV[from] to ARGV[to], which a client has open, again after all data was
-- lost; all at once, so that none misses a message that another has settled.
local function make_again(from, to)
  for i = from, to do
    local name = ARGV[i]
    if not group_named(name) and call('EXISTS', B .. 'gone:' .. name) == 0 then make(name) end
  end
end

-- The last entry that all of these groups have read, nil if there are none: what comes after it is
-- needed. There may be hundreds of groups, so that is asked first, and once for many entries.
local function read_by(groups)
  local least
  for _, g in ipairs(groups) do
    local last = g['last-delivered-id']
    if not least or after(least, last) then least = last end
  end
  return least
end

-- Whether one of these groups, which have all read the entry, is not done with it.
local function held(id, groups)
  for _, g in ipairs(groups) do
    if g.pending > 0 and #call('XPENDING', LOG, g.name, id, id, 1) > 0
      or g.parks and call('HEXISTS', B .. 'parked:' .. g.name, id) == 1 then
      return true
    end
  end
  return false
end

-- Whether the group has settled a message that it was given.
local function is_done(id)
  local group = group_named(G)
  return group and not after(id, group['last-delivered-id']) and not held(id, {group})
end

-- The last entry of the log that there has been: where work on a backlog ends, if others add to it.
local function last_entry() return fields(call('XINFO', 'STREAM', LOG))['last-generated-id'] end

local function drop_empty(stream)
  if call('XLEN', stream) == 0 then call('DEL', stream) end
end

local function remove(key, ids)
  call('XDEL', LOG, unpack(ids))
  local stream = B .. 'stream:' .. key
  call('XDEL', stream, unpack(ids))
  drop_empty(stream)
end

-- The id before which every group is done with every entry, or nil if that is not known. Trimming
-- up to it is much cheaper than deleting ids one by one.
local function settled_before(groups)
  if call('EXISTS', KEPT) == 1 then return nil end
  local floor
  for _, g in ipairs(groups) do
    if g.parks then return nil end
    local low = g.pending > 0 and call('XPENDING', LOG, g.name)[2]
    if not low then
      local ms, seq = string.match(g['last-delivered-id'], '^(%d+)-(%d+)$')
      low = ms .. '-' .. string.format('%.0f', seq + 1)
    end
    if not floor or after(floor, low) then floor = low end
  end
  return floor
end

-- Frees the payloads that a few keys have left behind. Returns how many keys that were.
local function tidy(limit)
  local keys = call('SPOP', DIRTY, limit)
  if #keys == 0 then return 0 end
  local floor = settled_before(all_groups())
  for _, key in ipairs(keys) do
    local stream = B .. 'stream:' .. key
    if floor then
      call('XTRIM', stream, 'MINID', floor)
    else
      local rows, gone = call('XRANGE', stream, '-', '+', 'COUNT', 100), {}
      for _, e in ipairs(rows) do
        if not entry_of(e[1]) then gone[#gone + 1] = e[1] end
      end
      if #gone > 0 then call('XDEL', stream, unpack(gone)) end
      if #gone == 100 then call('SADD', DIRTY, key) end
    end
    drop_empty(stream)
  end
  return #keys
end

-- With the last message and the last group everything goes. New ids are larger than all old ones,
-- because this millisecond has had none.
local function tidy_up()
  if call('EXISTS', LOG) == 0 or call('XLEN', LOG) > 0 or #all_groups() > 0 then return end
  for _, key in ipairs(call('SMEMBERS', DIRTY)) do call('DEL', B .. 'stream:' .. key) end
  call('DEL', DIRTY)
  if clock() > parse(last_entry()) then call('DEL', LOG, KEPT, DUE) end
end

-- Of messages that had to wait, forgets how long once they are gone.
local function forget_due(ids)
  for _, id in ipairs(ids) do
    if not entry_of(id) then call('ZREM', DUE, id) end
  end
end

-- Group G is done with these; they go unless another group, or retention, wants them.
local function done(by_key, keep, total)
  if not next(by_key) then return end
  if call('EXISTS', BEGUN) == 1 then
    for _, ids in pairs(by_key) do call('HDEL', BEGUN, unpack(ids)) end
  end
  if keep then
    call('SET', KEPT, 1)
    return
  end
  local groups, others = all_groups(), {}
  for _, g in ipairs(groups) do
    if g.name ~= G then others[#others + 1] = g end
  end
  local floor, least = settled_before(groups), read_by(others)
  local trimmed = floor and call('XTRIM', LOG, 'MINID', floor) or 0
  local dirty = {}
  for key, ids in pairs(by_key) do
    if trimmed > 0 and #ids >= 8 then
      local stream = B .. 'stream:' .. key
      call('XTRIM', stream, 'MINID', floor)
      drop_empty(stream)
    elseif trimmed > 0 then
      dirty[#dirty + 1] = key
    end
    -- Nothing else can have been before the floor, so the numbers tell whether these all were.
    if trimmed ~= total then
      local free = {}
      for _, id in ipairs(ids) do
        local needed = least and after(id, least) or held(id, others)
        if not needed and not (floor and after(floor, id)) then free[#free + 1] = id end
      end
      if #free > 0 then remove(key, free) end
    end
  end
  if #dirty > 0 then
    -- Trimming a stream for every message or two would cost more than all the rest.
    call('SADD', DIRTY, unpack(dirty))
    tidy(math.floor(#dirty / 8) + 1)
  end
end

local function add(by_key, key, id)
  local ids = by_key[key]
  if ids then ids[#ids + 1] = id else by_key[key] = {id} end
end

local function put_ready(id, key)
  local n = score(id)
  call('ZADD', READY, n, id)
  call('ZADD', READY .. '#' .. key, n, id)
  call('SADD', KEYS_READY, key)
end

local function park(id, key, attempts)
  call('HSET', PARKED, id, attempts)
  put_ready(id, key)
end

-- The message leaves what group g has parked and can take.
local function unpark(g, id, key)
  local ready = B .. 'ready:' .. g
  local own = ready .. '#' .. key
  call('ZREM', ready, id)
  call('ZREM', own, id)
  if call('EXISTS', own) == 0 then call('SREM', B .. 'keys:' .. g, key) end
  call('HDEL', B .. 'parked:' .. g, id)
end

local function postpone(id, attempts, due)
  call('HSET', PARKED, id, attempts)
  call('ZADD', LATER, due, id)
end

-- A delivery ends, and the message waits to be taken again: until due, if that is given.
local function put_back(id, key, attempts, due)
  if due then postpone(id, attempts, due) else park(id, key, attempts) end
  call('XACK', LOG, G, id)
end

local function notify()
  call('XADD', WAKE, 'MAXLEN', 1, '*', 'x', 1)
end

local function lease_of(consumer)
  return tonumber(string.match(consumer, '%-(%d+)$')) or 30000
end

-- The group forgets a message that has vanished. own: the ready set of its key, where that is known.
local function forget_vanished(id, own)
  vanished = vanished + call('HDEL', PARKED, id)
  call('ZREM', READY, id)
  call('ZREM', LATER, id)
  if own then call('ZREM', own, id) else keyless[#keyless + 1] = id end
end

local function forget_keyless()
  if #keyless == 0 then return end
  for _, key in ipairs(call('SMEMBERS', KEYS_READY)) do
    call('ZREM', READY .. '#' .. key, unpack(keyless))
  end
end

-- Messages that wait, but of which it was forgotten when, become ready. Returns how many.
local function restore()
  local restored = 0
  if call('HLEN', PARKED) <= call('ZCARD', READY) + call('ZCARD', LATER) then return 0 end
  for _, id in ipairs(call('HKEYS', PARKED)) do
    if not (call('ZSCORE', READY, id) or call('ZSCORE', LATER, id)) then
      local entry = entry_of(id)
      if entry then put_ready(id, entry.k) else forget_vanished(id) end
      restored = restored + 1
    end
  end
  return restored
end

-- Messages whose delay is over become ready.
local function ripen(now)
  local ripe = call('ZRANGEBYSCORE', LATER, '-inf', now, 'LIMIT', 0, 500)
  if #ripe > 0 then call('ZREMRANGEBYSCORE', DUE, '-inf', now) end
  for _, id in ipairs(ripe) do
    local entry = entry_of(id)
    if entry then put_ready(id, entry.k) else forget_vanished(id) end
    call('ZREM', LATER, id)
  end
  return #ripe
end

-- Messages whose consumer has let its lease lapse become ready, counted. A consumer's name ends in
-- its lease, so that consumers with different ones may share a group.
local function reclaim(now)
  local next, start, freed = nil, '-', 0
  for page = 1, 21 do
    if page == 21 then
      next = math.min(next or 1000, 1000)
      break
    end
    local pending = call('XPENDING', LOG, G, start, '+', 500)
    for _, p in ipairs(pending) do
      local left = lease_of(p[2]) - p[3]
      if left > 0 then
        next = math.min(next or left, left)
      else
        freed = freed + 1
        local entry = entry_of(p[1])
        if entry then
          put_back(p[1], entry.k, p[4])
        else
          vanished = vanished + call('XACK', LOG, G, p[1])
        end
      end
    end
    if #pending < 500 then break end
    start = '(' .. pending[#pending][1]
  end
  if next then call('SET', SWEEP, now + next + 1) else call('DEL', SWEEP) end
  if freed > 0 then call('INCR', EPOCH) end
  return freed
end

-- Let time pass for the group; returns when a lease may next lapse.
local function advance(now)
  write_first()
  local changed = ripen(now)
  local sweep = tonumber(call('GET', SWEEP) or '')
  if sweep and now >= sweep then
    changed = changed + reclaim(now)
    sweep = tonumber(call('GET', SWEEP) or '')
  end
  if changed > 0 then notify() end
  return sweep
end

-- The patterns of a key filter begin at ARGV[from]; there are none where every key matches.
local function matcher(from)
  local known = {}
  return function(key)
    if not ARGV[from] then return true end
    local answer = known[key]
    if answer == nil then
      answer = false
      for i = from, #ARGV do
        if string.find(key, ARGV[i]) then
          answer = true
          break
        end
      end
      known[key] = answer
    end
    return answer
  end
end

-- Moves on to the next id of a sorted set; returns false behind the last.
local function step(source)
  source.at = source.at + 2
  if not source.page[source.at] then
    local from = source.from
    source.page = call('ZRANGE', source.set, from, from + source.size - 1, 'WITHSCORES')
    source.from, source.at = from + source.size, 1
  end
  source.id, source.score = source.page[source.at], tonumber(source.page[source.at + 1])
  return source.id
end

-- In a heap the one with the lowest score is the first; that at i may be too far in front.
local function sink(heap, i)
  while true do
    local child = 2 * i
    if child >= #heap then
      if child > #heap then return end
    elseif heap[child + 1].score < heap[child].score then
      child = child + 1
    end
    if heap[i].score <= heap[child].score then return end
    heap[i], heap[child] = heap[child], heap[i]
    i = child
  end
end

-- Ids that can be taken, in order, at most limit, and if filtered the ready set of each. There may be
-- a thousand keys that match, with thousands of ids each, so no more of each is read than is needed.
local function ready_ids(limit, filtered, matches)
  if not filtered then return call('ZRANGE', READY, 0, limit - 1), {} end
  local keys, heap, ids, sets = {}, {}, {}, {}
  for _, key in ipairs(call('SMEMBERS', KEYS_READY)) do
    if matches(key) then keys[#keys + 1] = key end
  end
  local size = math.floor(limit / math.max(#keys, 1)) + 1
  for _, key in ipairs(keys) do
    local source = {set = READY .. '#' .. key, from = 0, size = size, page = {}, at = 1}
    if step(source) then heap[#heap + 1] = source end
  end
  for i = math.floor(#heap / 2), 1, -1 do sink(heap, i) end
  while heap[1] and #ids < limit do
    ids[#ids + 1], sets[#sets + 1] = heap[1].id, heap[1].set
    if not step(heap[1]) then
      heap[1] = heap[#heap]
      heap[#heap] = nil
    end
    if heap[1] then sink(heap, 1) end
  end
  return ids, sets
end

-- What a script returns of a message: id, key, payload; and apart, because it is rare, position,
-- attempt, how often its handling began, headers, first id.
local function append(out, extras, id, key, attempt, body, first)
  local n = #out
  out[n + 1], out[n + 2], out[n + 3] = id, key, body.p or ''
  if attempt ~= 1 or body.h or first then
    local begun = attempt > 1 and call('HGET', BEGUN, id)
    local m = #extras
    extras[m + 1], extras[m + 2] = n / 3, attempt
    extras[m + 3] = begun and tonumber(string.match(begun, '^%d+')) or 0
    extras[m + 4], extras[m + 5] = body.h or '', first or ''
  end
end
