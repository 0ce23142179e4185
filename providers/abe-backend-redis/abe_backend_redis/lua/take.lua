-- ARGV: group, consumer, number of this answer, most messages, whether to keep settled ones, most
-- bytes of payload, patterns. Returns the messages, the epoch, how many messages have vanished, how
-- long until something may be due (ms, -1 = never), and the last entries of log and wake seen, after
-- which to wait for more.
local me, number, count, keep = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1'
local most, filtered, matches = tonumber(ARGV[6]), ARGV[7] ~= nil, matcher(7)
if call('GET', ANSWER .. me) == '' then return {{}, {}, 0, 0, -1, '0-0', '0-0'} end
local now = clock()
local sweep = advance(now)
local out, extras, got, bytes = {}, {}, 0, 0
local singly = {}

-- Hands over what waits; returns whether there is nothing more that comes before the log.
local function take_ready()
  while true do
    local wanted = count - got
    local ids, sets = ready_ids(wanted, filtered, matches)
    for n, id in ipairs(ids) do
      local attempt = tonumber(call('HGET', PARKED, id) or '0') + 1
      -- What may kill its consumers is handed over singly, and nothing before it.
      if bytes >= most or (attempt >= 3 and got > 0) then return false end
      local entry = entry_of(id)
      local body = entry and body_of(entry.k, id)
      if body then
        call('XCLAIM', LOG, G, me, 0, id, 'FORCE', 'RETRYCOUNT', attempt, 'JUSTID')
        unpark(G, id, entry.k)
        append(out, extras, id, entry.k, attempt, body, entry.o)
        got, bytes = got + 1, bytes + #body.p
        singly[got] = id
        if attempt >= 3 then return false end
      else
        forget_vanished(id, entry and READY .. '#' .. entry.k or sets[n])
      end
    end
    if #ids < wanted then return true end
    if got >= count then return false end
  end
end

local parked, more = false, false
local aside, finished = {}, {}
local NONE = {}

local function leave(id, key)
  park(id, key, 0)
  parked = true
  aside[#aside + 1] = id
end

local function hand_over(id, key, body, first)
  local n = #out
  if #body == 2 and not first then
    out[n + 1], out[n + 2], out[n + 3] = id, key, body[2]
  else
    append(out, extras, id, key, 1, fields(body), first)
  end
  bytes = bytes + #out[n + 3]
end

-- The usual case: nothing to sort out, and all under one key. Returns false if it is another.
local function deliver_plain(entries, from, to)
  if filtered then return false end
  local key = entries[from][2][2]
  for i = from, to do
    local flat = entries[i][2]
    if flat[2] ~= key or flat[3] then return false end
  end
  local rows = call('XRANGE', B .. 'stream:' .. key, entries[from][1], entries[to][1])
  if #rows ~= to - from + 1 then return false end
  for _, row in ipairs(rows) do
    if bytes < most then hand_over(row[1], key, row[2]) else leave(row[1], key) end
  end
  return true
end

-- The payloads of entries just read, by id; they lie side by side under each key.
local function fetch(spans)
  local bodies = {}
  for key, span in pairs(spans) do
    for _, e in ipairs(call('XRANGE', B .. 'stream:' .. key, span[1], span[2])) do
      if e[2][1] == 'p' then bodies[e[1]] = e[2] end
    end
  end
  return bodies
end

-- Hands over what this consumer may have now; the rest is put aside.
local function deliver(entries, from, to)
  local ids, keys, firsts, spans, n = {}, {}, {}, {}, 0
  local free = count - #out / 3
  for i = from, to do
    local id, flat = entries[i][1], entries[i][2]
    local key, entry = flat[2], #flat > 2 and fields(flat) or NONE
    local due = entry.d and tonumber(call('ZSCORE', DUE, id) or '')
    if entry.g and entry.g ~= G then
      add(finished, key, id)
      aside[#aside + 1] = id
    elseif due and due > now then
      postpone(id, 0, due)
      aside[#aside + 1] = id
    elseif n >= free or bytes >= most or not matches(key) then
      leave(id, key)
    else
      n = n + 1
      ids[n], keys[n], firsts[n] = id, key, entry.o
      local span = spans[key]
      if span then span[2] = id else spans[key] = {id, id} end
    end
  end
  local bodies = fetch(spans)
  for i = 1, n do
    local id, key = ids[i], keys[i]
    if not bodies[id] then
      vanished = vanished + 1
      add(finished, key, id)
      aside[#aside + 1] = id
    elseif bytes < most then
      hand_over(id, key, bodies[id], firsts[i])
    else
      leave(id, key)
    end
  end
end

-- Reads the next entries off the log. How large their payloads are shows only when they are
-- fetched, so that is done for a few at a time.
local first_read, last_read = '-', '-'
local function read(limit)
  local reply = call('XREADGROUP', 'GROUP', G, me, 'COUNT', limit, 'STREAMS', LOG, '>')
  if not reply then return false end
  local entries = reply[1][2]
  if first_read == '-' then first_read = entries[1][1] end
  last_read = entries[#entries][1]
  for from = 1, #entries, 64 do
    local to = math.min(from + 63, #entries)
    if bytes >= most or not deliver_plain(entries, from, to) then deliver(entries, from, to) end
  end
  got = #out / 3
  if #aside > 0 then call('XACK', LOG, G, unpack(aside)) end
  if next(finished) then done(finished, keep, -1) end
  aside, finished = {}, {}
  return true
end

if take_ready() then
  -- A consumer that wants few keys reads far ahead of what it gets, but not forever.
  for round = 1, 8 do
    if got >= count or bytes >= most then break end
    more = read(filtered and math.max(count - got, 256) or count - got)
    if not more then break end
  end
end
if parked then notify() end
forget_keyless()

if got > 0 then
  local lease = lease_of(me)
  local lapse = now + lease
  if not sweep or lapse < sweep then call('SET', SWEEP, lapse) end
  local handed = table.concat({number, first_read, last_read, unpack(singly)}, ' ')
  call('SET', ANSWER .. me, handed, 'PX', math.max(lease, 1))
  return {out, extras, tonumber(call('GET', EPOCH) or '0'), vanished, 0, '', ''}
end
if tidy(200) == 200 or restore() > 0 then more = true end
local wait = sweep and sweep - now or -1
local later = call('ZRANGE', LATER, 0, 0, 'WITHSCORES')[2]
if later and (wait < 0 or later - now < wait) then wait = math.max(later - now, 0) end
if more then wait = 0 end
local woken = call('XREVRANGE', WAKE, '+', '-', 'COUNT', 1)[1]
return {{}, {}, 0, vanished, math.floor(wait), last_entry(), woken and woken[1] or '0-0'}
