-- ARGV: group, consumer, most messages, whether to keep settled ones, patterns.
-- Returns the messages and the epoch; if there are none: how long until something may be due (ms,
-- -1 = never), and the last entries of log and wake seen, after which to wait for more.
local me, count, keep = ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local filtered, matches = ARGV[5] ~= nil, matcher(5)
local now = clock()
local sweep = advance(now)
local out, extras, got, alone = {}, {}, 0, false

for _, id in ipairs(ready_ids(count, filtered, matches)) do
  local attempt = tonumber(call('HGET', PARKED, id) or '0') + 1
  -- What may kill its consumers is handed over singly.
  if got >= count or (attempt >= 3 and got > 0) then break end
  local entry = entry_of(id)
  local body = entry and body_of(entry.k, id)
  if body then
    call('XCLAIM', LOG, G, me, 0, id, 'FORCE', 'RETRYCOUNT', attempt, 'JUSTID')
    unpark(G, id, entry.k)
    append(out, extras, id, entry.k, attempt, body, entry.o)
    got = got + 1
    alone = attempt >= 3
    if alone then break end
  else
    call('HDEL', PARKED, id)
    call('ZREM', READY, id)
  end
end

local parked, more = false, false

-- The payloads of entries just read, by id; they lie side by side under each key.
local function fetch(spans)
  local bodies = {}
  for key, span in pairs(spans) do
    for _, e in ipairs(call('XRANGE', B .. 'stream:' .. key, span[1], span[2])) do
      bodies[e[1]] = e[2]
    end
  end
  return bodies
end

local function deliver(ids, keys, firsts, spans, finished, aside)
  local bodies = fetch(spans)
  local n = #out
  for i = 1, #ids do
    local id = ids[i]
    local body = bodies[id]
    if not body then
      aside[#aside + 1] = id
      add(finished, keys[i], id)
    elseif #body == 2 and not firsts[i] then
      out[n + 1], out[n + 2], out[n + 3] = id, keys[i], body[2]
      n = n + 3
    else
      append(out, extras, id, keys[i], 1, fields(body), firsts[i])
      n = n + 3
    end
  end
  got = n / 3
end

-- The usual case: nothing to sort out, and all under one key. Returns false if it is another.
local function deliver_plain(entries)
  if filtered then return false end
  local total, key = #entries, entries[1][2][2]
  for i = 1, total do
    local flat = entries[i][2]
    if flat[2] ~= key or flat[3] then return false end
  end
  local rows = call('XRANGE', B .. 'stream:' .. key, entries[1][1], entries[total][1])
  if #rows ~= total then return false end
  local n = #out
  for i = 1, total do
    local row = rows[i]
    local body = row[2]
    if body[3] then
      append(out, extras, row[1], key, 1, fields(body))
    else
      out[n + 1], out[n + 2], out[n + 3] = row[1], key, body[2]
    end
    n = n + 3
  end
  got = n / 3
  return true
end

-- Reads the next entries off the log; those that this consumer may not have now are put aside.
local function read(limit)
  local reply = call('XREADGROUP', 'GROUP', G, me, 'COUNT', limit, 'STREAMS', LOG, '>')
  if not reply then return false end
  if deliver_plain(reply[1][2]) then return true end
  local ids, keys, firsts, spans, finished, aside = {}, {}, {}, {}, {}, {}
  local n = 0
  for _, e in ipairs(reply[1][2]) do
    local id, flat = e[1], e[2]
    local key, fit = flat[2], true
    if filtered or #flat > 2 then
      local entry = fields(flat)
      local due = entry.d and tonumber(call('ZSCORE', DUE, id) or '')
      fit = false
      if entry.g and entry.g ~= G then
        add(finished, key, id)
      elseif due and due > now then
        postpone(id, 0, due)
      elseif not matches(key) or got + n >= count then
        park(id, key, 0)
        parked = true
      else
        fit = true
        firsts[n + 1] = entry.o
      end
    end
    if fit then
      n = n + 1
      ids[n], keys[n] = id, key
      local span = spans[key]
      if span then span[2] = id else spans[key] = {id, id} end
    else
      aside[#aside + 1] = id
    end
  end
  deliver(ids, keys, firsts, spans, finished, aside)
  if #aside > 0 then call('XACK', LOG, G, unpack(aside)) end
  if next(finished) then done(finished, keep, -1) end
  return true
end

if not alone then
  -- A consumer that wants few keys reads far ahead of what it gets, but not forever.
  for round = 1, 8 do
    if got >= count then break end
    more = read(filtered and math.max(count - got, 256) or count - got)
    if not more then break end
  end
end
if parked then notify() end

if got > 0 then
  local lapse = now + lease_of(me)
  if not sweep or lapse < sweep then call('SET', SWEEP, lapse) end
  return {out, extras, tonumber(call('GET', EPOCH) or '0')}
end
if tidy(200) == 200 then more = true end
local wait = sweep and sweep - now or -1
local later = call('ZRANGE', LATER, 0, 0, 'WITHSCORES')[2]
if later and (wait < 0 or later - now < wait) then wait = math.max(later - now, 0) end
if more then wait = 0 end
local last = fields(call('XINFO', 'STREAM', LOG))['last-generated-id']
local woken = call('XREVRANGE', WAKE, '+', '-', 'COUNT', 1)[1]
return {{}, {}, 0, math.floor(wait), last, woken and woken[1] or '0-0'}
