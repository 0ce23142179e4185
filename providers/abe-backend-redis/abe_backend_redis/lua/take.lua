-- ARGV: group, consumer, most messages, whether to keep settled ones, patterns.
-- Returns the messages; if there are none: how long until something may be due (ms, -1 = never),
-- and the last entries of log and wake seen, after which the consumer can wait for more.
local me, count, keep = ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local filtered, matches = ARGV[5] ~= nil, matcher(5)
local now = clock()
local sweep = advance(now)
local out, got, alone = {}, 0, false

for _, id in ipairs(ready_ids(count, filtered, matches)) do
  local attempt = tonumber(call('HGET', PARKED, id) or '0') + 1
  -- What may kill its consumers is handed over singly.
  if got >= count or (attempt >= 3 and got > 0) then break end
  local entry = entry_of(id)
  local body = entry and body_of(entry.k, id)
  if body then
    unpark(id, entry.k)
    call('XCLAIM', LOG, G, me, 0, id, 'FORCE', 'RETRYCOUNT', attempt, 'JUSTID')
    append(out, id, entry, attempt, body)
    got = got + 1
    alone = attempt >= 3
    if alone then break end
  else
    call('HDEL', PARKED, id)
    call('ZREM', READY, id)
  end
end

local parked, more = false, false

-- Reads the next entries off the log; those that this consumer may not have now are put aside.
local function read(limit)
  local reply = call('XREADGROUP', 'GROUP', G, me, 'COUNT', limit, 'STREAMS', LOG, '>')
  if not reply then return false end
  local wanted, spans, finished, aside = {}, {}, {}, {}
  for _, e in ipairs(reply[1][2]) do
    local id, entry = e[1], e[2]
    if #entry == 2 then entry = {k = entry[2]} else entry = fields(entry) end
    local key = entry.k
    local due = entry.d and tonumber(call('ZSCORE', DUE, id) or '')
    if entry.g and entry.g ~= G then
      aside[#aside + 1] = id
      add(finished, key, id)
    elseif due and due > now then
      aside[#aside + 1] = id
      postpone(id, 0, due)
    elseif not matches(key) or got + #wanted >= count then
      aside[#aside + 1] = id
      park(id, key, 0)
      parked = true
    else
      wanted[#wanted + 1] = {id, entry}
      local span = spans[key]
      if span then span[2], span[3] = id, span[3] + 1 else spans[key] = {id, id, 1} end
    end
  end
  local bodies = {}
  for key, span in pairs(spans) do
    for _, e in ipairs(call('XRANGE', B .. 'stream:' .. key, span[1], span[2])) do
      bodies[e[1]] = e[2]
    end
  end
  for _, w in ipairs(wanted) do
    local body = bodies[w[1]]
    if body then
      append(out, w[1], w[2], 1, #body == 2 and {p = body[2]} or fields(body))
      got = got + 1
    else
      aside[#aside + 1] = w[1]
      add(finished, w[2].k, w[1])
    end
  end
  if #aside > 0 then call('XACK', LOG, G, unpack(aside)) end
  done(finished, keep)
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
  return {out}
end
local wait = sweep and sweep - now or -1
local later = call('ZRANGE', LATER, 0, 0, 'WITHSCORES')[2]
if later and (wait < 0 or later - now < wait) then wait = later - now end
if more then wait = 0 end
local last = fields(call('XINFO', 'STREAM', LOG))['last-generated-id']
local woken = call('XREVRANGE', WAKE, '+', '-', 'COUNT', 1)[1]
return {{}, math.floor(wait), last, woken and woken[1] or '0-0'}
