-- ARGV: group, consumer, number of this answer, most messages, most bytes of payload, filter. Returns
-- the messages, the epoch, how many messages have vanished, how long until something may be due (ms,
-- -1 = never), and the last entries of messages and wake seen, after which to wait for more.
local me, number, count = ARGV[2], ARGV[3], tonumber(ARGV[4])
local most, filter = tonumber(ARGV[5]), ARGV[6]
if call('GET', ANSWER .. me) == '' then return {{}, {}, 0, 0, -1, '0-0', '0-0'} end
local now = clock()
local sweep = advance(now)
local out, extras, got, bytes = {}, {}, 0, 0
local singly = {}
local source = filter == '' and READY or READY .. '#' .. filter

-- A consumer with a filter takes from a set of its own, so that it looks at nothing else. Returns false
-- while that is not complete: what was left out before the filter was known is sorted in page by page.
local function sorted()
  local sorting = B .. 'sorting:' .. G .. '#' .. filter
  local used = tonumber(call('ZSCORE', FILTERS, filter) or '0')
  if used == 0 then call('SET', sorting, '-inf') end
  if now - used > 60000 then call('ZADD', FILTERS, now, filter) end
  filters = nil
  local from = call('GET', sorting)
  if not from then return true end
  local page = call('ZRANGEBYSCORE', READY, from, '+inf', 'WITHSCORES', 'LIMIT', 0, 2000)
  local matches = matcher(filter)
  for i = 1, #page, 2 do
    local text = entry_of(page[i])
    if not text or matches(key_of(text)) then call('ZADD', source, page[i + 1], page[i]) end
  end
  if #page < 4000 then call('DEL', sorting) else call('SET', sorting, page[#page]) end
  return #page < 4000
end

-- Hands over what waits; returns whether there is nothing more that comes before the stream.
local function take_ready()
  while true do
    local wanted = count - got
    local ids = call('ZRANGE', source, 0, wanted - 1)
    for _, id in ipairs(ids) do
      local attempt = tonumber(call('HGET', TRIES, id) or '0') + 1
      -- What may kill its consumers is handed over singly, and nothing before it.
      if bytes >= most or (attempt >= 3 and got > 0) then return false end
      local text, more = entry_of(id)
      if text then
        call('XCLAIM', MESSAGES, G, me, 0, id, 'FORCE', 'RETRYCOUNT', attempt, 'JUSTID')
        append(out, extras, id, text, attempt, more)
        got, bytes = got + 1, bytes + #text
        singly[got] = id
      else
        vanished = vanished + 1
      end
      unready(id)
      if attempt > 1 then call('HDEL', TRIES, id) end
      if attempt >= 3 and got > 0 then return false end
    end
    if #ids < wanted then return true end
    if got >= count then return false end
  end
end

-- Reads the next entries off the stream and hands over those that this consumer may have now; the
-- rest is left to others. No more are read than fit, were all of them as large as the largest.
local matches = matcher(filter)
local largest = math.max(tonumber(call('HGET', META, 'largest') or '0'), 1)
local plain = filter == '' and call('EXISTS', B .. 'filter:' .. G) == 0
local first_read, last_read = '-', '-'
local function read(limit)
  limit = math.min(limit, math.max(math.floor((most - bytes) / largest), 1))
  local reply = call('XREADGROUP', 'GROUP', G, me, 'COUNT', limit, 'STREAMS', MESSAGES, '>')
  if not reply then return 0 end
  local rows, n = reply[1][2], #out
  if first_read == '-' then first_read = rows[1][1] end
  last_read = rows[#rows][1]
  local aside, parked = {}, {}
  for i = 1, #rows do
    local id, flat = rows[i][1], rows[i][2]
    local text = flat[2]
    if plain and not flat[3] then
      out[n + 1], out[n + 2] = id, text
      n, bytes = n + 2, bytes + #text
    else
      local more = fields(flat, 3)
      if not is_ours(text, more) then
        aside[#aside + 1] = id
      elseif n >= 2 * count or not matches(key_of(text)) then
        put_ready(id, text)
        parked[#parked + 1] = id
      else
        append(out, extras, id, text, 1, more)
        n, bytes = n + 2, bytes + #text
      end
    end
  end
  got = n / 2
  settle(aside)
  if #parked > 0 then
    call('XACK', MESSAGES, G, unpack(parked))
    notify()
  end
  return #rows
end

if filter ~= '' and not sorted() then return {{}, {}, 0, 0, 0, '', ''} end
local more = false
if take_ready() then
  -- A consumer that wants few keys reads far ahead of what it gets, but not forever.
  local left = plain and count or 2048
  while left > 0 and got < count and bytes < most do
    local number_read = read(plain and count - got or math.min(left, 256))
    left = left - number_read
    more = number_read > 0
    if not more then break end
  end
end

if got > 0 then
  local lease = lease_of(me)
  local lapse = now + lease
  if not sweep or lapse < sweep then call('SET', SWEEP, lapse) end
  local handed = table.concat({number, first_read, last_read, unpack(singly)}, ' ')
  call('SET', ANSWER .. me, handed, 'PX', math.max(lease, 1))
  return {out, extras, tonumber(call('GET', EPOCH) or '0'), vanished, 0, '', ''}
end
-- What was settled last may still be there; of several groups, not each has to look for it.
if call('EXISTS', SETTLED) == 1 and now - (call('HGET', META, 'tidied') or 0) > 1000 then
  call('HSET', META, 'tidied', now)
  collect()
end
local wait = sweep and sweep - now or -1
for _, set in ipairs({LATER, SCHEDULED}) do
  local due = call('ZRANGE', set, 0, 0, 'WITHSCORES')[2]
  if due and (wait < 0 or due - now < wait) then wait = math.max(due - now, 0) end
end
if more then wait = 0 end
local woken = call('XREVRANGE', WAKE, '+', '-', 'COUNT', 1)[1]
return {{}, {}, 0, vanished, math.floor(wait), last_entry(), woken and woken[1] or '0-0'}
