-- Shared by every script. KEYS[1] tells the format of the namespace; all other keys are derived from it
-- and lie in its slot, because they begin with the same hash tag. '#' occurs in no key or group name.
--
-- Redis undoes nothing when a script fails half-way, as for a right that its user lacks. So what
-- moves a message first puts it where it goes, and only then takes it from where it was.
--
--   log                 the format, '2'. It is a string, so a version for format 1, which keeps a
--                       stream here, is refused by Redis and harms nothing
--   messages            one entry for each message: m is the key, a space and the payload, in one because
--                       each part costs; then, where they apply, h headers, i its id if that is not the
--                       entry's, t when it was published (ms), g the only groups it is for, x those that
--                       have purged it. The consumer groups are on this stream
--   scheduled, delayed  messages to come: id -> when they are due (ms), id -> the same fields, packed
--   meta                largest text there has been (which is known only while the format is this one, so
--                       that it stands for all of that), keep (settled ones are kept for later groups, by
--                       length or age), settled (since the last collection, less what one waits for),
--                       floor and tidied (of collections), serial of scheduled ids
--   settled             what groups are done with and has not been collected: group and ids, scored by
--                       the time of the last id (ms)
--   kept:KEY            ids of KEY, where its latest are kept
--   ready:G             messages of group G read off the stream and in nobody's hands
--   ready:G#F           of those, the ones that consumers with filter F take
--   filters:G           the filters F in use, scored by when they last were (ms)
--   sorting:G#F         how far ready:G has been gone through for the new filter F
--   later:G             messages that wait: id scored by its time
--   tries:G             of ready and later ones: id -> deliveries so far, if there were any
--   filter:G            the filter of the group itself: what it leaves out is nothing that G waits for
--   sweep:G             when a lease may next lapse
--   epoch:G             begins with the time at which the group was made, and grows whenever a lease
--                       has lapsed: while it is the same, every message handed over still belongs
--                       to whom it was handed to
--   dead:G              dead letters: i id, k key, t, n attempts, p payload, h headers, d why
--   wake:G              gets an entry when waiting consumers should look again
--   gone:G              G was deleted on purpose, not lost with the data
--   begun:G             how often handling of a message began: id -> count and attempt of the last
--   answer:CONSUMER     which messages its latest answer handed over: number of the answer, first
--                       and last id read off the stream, other ids; empty once it was recalled
--   ids                 for ids that callers give: id scored by when it was published (ms)
local B = string.sub(KEYS[1], 1, -4)
local G = ARGV[1] or ''
local MESSAGES, META, SETTLED = B .. 'messages', B .. 'meta', B .. 'settled'
local SCHEDULED, DELAYED = B .. 'scheduled', B .. 'delayed'
local READY, LATER, TRIES = B .. 'ready:' .. G, B .. 'later:' .. G, B .. 'tries:' .. G
local FILTERS, SWEEP, EPOCH = B .. 'filters:' .. G, B .. 'sweep:' .. G, B .. 'epoch:' .. G
local DEAD, WAKE, GONE = B .. 'dead:' .. G, B .. 'wake:' .. G, B .. 'gone:' .. G
local BEGUN, ANSWER = B .. 'begun:' .. G, B .. 'answer:'
local call, sub = redis.call, string.sub

local format = redis.pcall('GET', KEYS[1])

-- Messages of the group that something other than abe has deleted: trimmed, or evicted.
local vanished = 0

-- Out of memory, Redis refuses only the first write of a script. This one needs none, so consumers
-- go on, which is what frees memory.
local function write_first() call('HDEL', TRIES, '') end

local function clock()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function parse(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

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
  return string.format('%.0f', (ms - 1577836800000) * 4096 + seq)
end

local function fields(flat, from)
  local found = {}
  for i = from or 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

local function key_of(text) return string.match(text, '^[^ ]+') or '' end

-- Key and payload in one, and the other fields of an entry; nil if there is none.
local function entry_of(id)
  local found = call('XRANGE', MESSAGES, id, id)[1]
  if found then return found[2][2], fields(found[2], 3) end
end

-- Publishes a message; returns the id of its entry, or an error.
local function store(text, more)
  local flat = {'m', text}
  for _, name in ipairs({'h', 'i', 't', 'g', 'x'}) do
    if more[name] then
      flat[#flat + 1] = name
      flat[#flat + 1] = more[name]
    end
  end
  local stored = redis.pcall('XADD', MESSAGES, '*', unpack(flat))
  if type(stored) ~= 'table' and call('HGET', META, 'keep') == 'length' then
    call('ZADD', B .. 'kept:' .. key_of(text), score(stored), stored)
  end
  return stored
end

local function all_groups()
  local found = {}
  if call('EXISTS', MESSAGES) == 1 then
    for _, row in ipairs(call('XINFO', 'GROUPS', MESSAGES)) do found[#found + 1] = fields(row) end
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
  call('XGROUP', 'CREATE', MESSAGES, name, '0', 'MKSTREAM')
  call('SET', B .. 'epoch:' .. name, clock())
  if not format then call('SET', KEYS[1], '2') end
end

-- Makes the groups at ARGV[from] to ARGV[to], which a client has open, again after all data was
-- lost; all at once, so that none misses a message that another has settled.
local function make_again(from, to)
  for i = from, to do
    local name = ARGV[i]
    if not group_named(name) and call('EXISTS', B .. 'gone:' .. name) == 0 then make(name) end
  end
end

local function notify(name)
  call('XADD', name and B .. 'wake:' .. name or WAKE, 'MAXLEN', 1, '*', 'x', 1)
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

-- Whether a group, which has read the entry, is not done with it.
local function holds(g, id)
  return g.pending > 0 and #call('XPENDING', MESSAGES, g.name, id, id, 1) > 0
    or call('ZSCORE', B .. 'ready:' .. g.name, id)
    or call('ZSCORE', B .. 'later:' .. g.name, id)
end

local function held(id, groups)
  for _, g in ipairs(groups) do
    if holds(g, id) then return true end
  end
  return false
end

-- Whether the group has settled a message that it was given.
local function is_done(id)
  local group = group_named(G)
  return group and not after(id, group['last-delivered-id']) and not holds(group, id)
end

-- The last entry that there has been: where work on a backlog ends, if others add to it.
local function last_entry()
  return fields(call('XINFO', 'STREAM', MESSAGES))['last-generated-id']
end

-- The id before which a group is done with every entry.
local function floor_of(g)
  -- Those that wait are not kept in the order of their ids.
  if call('EXISTS', B .. 'later:' .. g.name) == 1 then return '0-0' end
  local first = call('ZRANGE', B .. 'ready:' .. g.name, 0, 0)[1]
  local taken = g.pending > 0 and call('XPENDING', MESSAGES, g.name, '-', '+', 1)[1]
  if taken and not (first and after(taken[1], first)) then return taken[1] end
  if first then return first end
  local ms, seq = string.match(g['last-delivered-id'], '^(%d+)-(%d+)$')
  return ms .. '-' .. string.format('%.0f', seq + 1)
end

-- Deletes entries that groups have settled out of order, if no group needs them any more. Who settles
-- an entry last finds that, so each is looked at once. Groups that are behind are asked first.
local function pick_out(groups, least)
  table.sort(groups, function(a, b) return after(b.floor, a.floor) end)
  local checks = 0
  for _, note in ipairs(call('ZRANGEBYSCORE', SETTLED, '-inf', (parse(least)), 'LIMIT', 0, 32)) do
    local by, free, whole = nil, {}, true
    for word in string.gmatch(note, '%S+') do
      if not by then
        by = word
      elseif after(word, least) then
        whole = false
      else
        local needed = false
        for _, g in ipairs(groups) do
          checks = checks + 1
          if g.name ~= by and holds(g, word) then
            needed = true
            break
          end
        end
        if not needed then free[#free + 1] = word end
      end
    end
    if #free > 0 then call('XDEL', MESSAGES, unpack(free)) end
    if whole then call('ZREM', SETTLED, note) end
    if checks > 4096 then return end
  end
end

-- Frees what every group is done with. That costs something for each group, so it waits until enough
-- is settled. Entries are trimmed in order, much cheaper than one by one; only while something at
-- the beginning stays, as one that is to be tried again in an hour, others are picked out.
local function collect()
  local groups = all_groups()
  if #groups == 0 or call('HGET', META, 'keep') then return end
  call('HSET', META, 'settled', 8 - 8 * #groups)
  local floor
  for _, g in ipairs(groups) do
    g.floor = floor_of(g)
    if not floor or after(floor, g.floor) then floor = g.floor end
  end
  call('XTRIM', MESSAGES, 'MINID', floor)
  call('ZREMRANGEBYSCORE', SETTLED, '-inf', '(' .. parse(floor))
  local notes = call('ZCARD', SETTLED)
  if notes > 0 then
    local least = read_by(groups)
    if not after(floor, least) then
      local stuck = call('HGET', META, 'floor') == floor
      if stuck or notes > 64 * #groups then pick_out(groups, least) end
    else
      call('DEL', SETTLED)
    end
  end
  call('HSET', META, 'floor', floor)
  if call('XLEN', MESSAGES) == 0 then call('HSET', META, 'largest', 0) end
end

-- Group G is done with these; they go unless another group, or retention, wants them.
local function settle(ids)
  if #ids == 0 then return end
  call('XACK', MESSAGES, G, unpack(ids))
  if call('EXISTS', BEGUN) == 1 then call('HDEL', BEGUN, unpack(ids)) end
  if call('HGET', META, 'keep') then return end
  local last = ids[1]
  for i = 2, #ids do
    if ids[i] > last then last = ids[i] end
  end
  call('ZADD', SETTLED, (parse(last)), G .. ' ' .. table.concat(ids, ' '))
  if call('HINCRBY', META, 'settled', #ids) >= 0 then collect() end
end

-- With the last message and the last group everything goes. New ids are larger than all old ones,
-- because this millisecond has had none.
local function tidy_up()
  if call('EXISTS', MESSAGES) == 0 or call('XLEN', MESSAGES) > 0 then return end
  if #all_groups() > 0 or call('EXISTS', SCHEDULED) == 1 then return end
  if clock() > parse(last_entry()) then call('DEL', MESSAGES, META, SETTLED, KEYS[1]) end
end

-- A filter is a list of patterns; one that is empty lets every key through.
local matchers = {}
local function matcher(filter)
  local found = matchers[filter]
  if found then return found end
  local patterns, known = {}, {}
  for pattern in string.gmatch(filter, '%S+') do patterns[#patterns + 1] = pattern end
  found = function(key)
    local answer = known[key]
    if answer == nil then
      answer = #patterns == 0
      for _, pattern in ipairs(patterns) do answer = answer or string.find(key, pattern) ~= nil end
      known[key] = answer
    end
    return answer
  end
  matchers[filter] = found
  return found
end

local function lists(names, name)
  return names and string.find(' ' .. names .. ' ', ' ' .. name .. ' ', 1, true)
end

-- Whether a message with these further fields is for a group of that name.
local function is_for(more, name)
  return (not more.g or lists(more.g, name)) and not lists(more.x, name)
end

-- Whether the group may have a message: it may be for others, or left out by the group's own filter.
local own
local function is_ours(text, more)
  own = own or call('GET', B .. 'filter:' .. G) or ''
  return (own == '' or matcher(own)(key_of(text))) and is_for(more, G)
end

local filters
local function known_filters()
  filters = filters or call('ZRANGE', FILTERS, 0, -1)
  return filters
end

local function put_ready(id, text)
  local n = score(id)
  call('ZADD', READY, n, id)
  for _, filter in ipairs(known_filters()) do
    text = text or entry_of(id)
    if text and matcher(filter)(key_of(text)) then call('ZADD', READY .. '#' .. filter, n, id) end
  end
end

local function unready(id)
  for _, filter in ipairs(known_filters()) do call('ZREM', READY .. '#' .. filter, id) end
  call('ZREM', READY, id)
end

-- A delivery ends, and the message waits to be taken again: until due, if that is given. Its text
-- is looked up where that is nil.
local function put_back(id, text, tries, due)
  if tries > 0 then call('HSET', TRIES, id, tries) end
  if due then call('ZADD', LATER, due, id) else put_ready(id, text) end
  call('XACK', MESSAGES, G, id)
end

local function lease_of(consumer)
  return tonumber(string.match(consumer, '%-(%d+)$')) or 30000
end

-- Messages whose delay is over become ready.
local function ripen(now)
  for _, id in ipairs(call('ZRANGEBYSCORE', SCHEDULED, '-inf', now, 'LIMIT', 0, 500)) do
    local packed = call('HGET', DELAYED, id)
    if packed then
      local m = cmsgpack.unpack(packed)
      local stored = store(m.m, m)
      if type(stored) == 'table' then return 0 end
    end
    call('ZREM', SCHEDULED, id)
    call('HDEL', DELAYED, id)
  end
  local ripe = call('ZRANGEBYSCORE', LATER, '-inf', now, 'LIMIT', 0, 500)
  for _, id in ipairs(ripe) do
    local text = entry_of(id)
    if text then
      put_ready(id, text)
    else
      vanished = vanished + 1
      call('HDEL', TRIES, id)
    end
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
    local pending = call('XPENDING', MESSAGES, G, start, '+', 500)
    for _, p in ipairs(pending) do
      local left = lease_of(p[2]) - p[3]
      if left > 0 then
        next = math.min(next or left, left)
      else
        freed = freed + 1
        local text = entry_of(p[1])
        if text then
          put_back(p[1], text, p[4])
        else
          vanished = vanished + call('XACK', MESSAGES, G, p[1])
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

-- What a script returns of a message: id and text; and apart, because it is rare, position, attempt, how
-- often its handling began, headers, first id, when it was published if that does not tell.
local function append(out, extras, id, text, attempt, more)
  local n, m = #out, #extras
  out[n + 1], out[n + 2] = id, text
  if attempt ~= 1 or next(more) then
    local begun = attempt > 1 and call('HGET', BEGUN, id)
    extras[m + 1], extras[m + 2] = n / 2, attempt
    extras[m + 3] = begun and tonumber(string.match(begun, '^%d+')) or 0
    extras[m + 4], extras[m + 5], extras[m + 6] = more.h or '', more.i or '', more.t or ''
  end
end
