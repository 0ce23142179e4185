-- ARGV: `plain` if the messages have nothing more and there are no limits; most messages in the
-- namespace, most to retain of a key, most age in ms, whether to drop unsettled ones; how many groups the
-- client has open and these; then each message, key and payload in one, or if it has more: nothing,
-- that, headers, delay in ms.
local A, limit, length, age = ARGV, tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now = clock()
local open = tonumber(A[6])
if not format or call('EXISTS', MESSAGES) == 0 then
  make_again(7, 6 + open)
  if not format then call('SET', KEYS[1], '2') end
end
local meta = call('HMGET', META, 'keep', 'largest')
local keep = length > 0 and 'length' or age > 0 and 'age'
if keep and keep ~= meta[1] then call('HSET', META, 'keep', keep) end
if meta[1] and not keep then call('HDEL', META, 'keep') end

local function room()
  return limit - call('XLEN', MESSAGES) - call('ZCARD', SCHEDULED)
end
local free = math.huge
if limit > 0 then
  free = room()
  if free < #A then
    collect()
    free = room()
  end
end

local accepted, problem, largest, earliest = 0, '', tonumber(meta[2] or '0'), nil
local before = largest
local ids, texts = {}, {}

-- Keeps a message until it is due; returns its id, or an error.
local function schedule(text, headers, delay)
  local id = string.format('%d-s%d', now, call('HINCRBY', META, 'serial', 1))
  local packed = {m = text, h = headers, i = id, t = string.format('%d', now)}
  local stored = redis.pcall('HSET', DELAYED, id, cmsgpack.pack(packed))
  if type(stored) == 'table' then return stored end
  stored = redis.pcall('ZADD', SCHEDULED, now + delay, id)
  if type(stored) == 'table' then
    call('HDEL', DELAYED, id)
    return stored
  end
  earliest = earliest or call('ZRANGE', SCHEDULED, 0, 0)[1] == id
  return id
end

local xadd, i, n = redis.pcall, 7 + open, #A
while i <= n do
  if accepted >= free then
    problem = 'FULL'
    break
  end
  local text, id = A[i], nil
  if text ~= '' then
    i = i + 1
    id = xadd('XADD', MESSAGES, '*', 'm', text)
  else
    text = A[i + 1]
    local headers, delay = A[i + 2], tonumber(A[i + 3])
    if headers == '' then headers = nil end
    i = i + 4
    id = delay > 0 and schedule(text, headers, delay) or store(text, {h = headers})
  end
  if type(id) == 'table' then
    problem = id.err
    break
  end
  accepted = accepted + 1
  if #text > largest then largest = #text end
  if length > 0 then ids[accepted], texts[accepted] = id, text end
end
if largest > before or not meta[2] then call('HSET', META, 'largest', largest) end
if earliest then
  for _, g in ipairs(all_groups()) do notify(g.name) end
end

-- The server is no primary any more, or the slot is moving: nothing was done here.
for _, sign in ipairs({'READONLY', 'non local key'}) do
  if accepted == 0 and string.find(problem, sign, 1, true) then return redis.error_reply(problem) end
end
if not keep then
  if problem == '' then return accepted end
  return {accepted, problem, 0}
end

-- Retention. A message that a group has not settled stays, unless we were told to drop it.
local drop = A[5] == '1'
local dropped = 0
local groups = all_groups()
local least = read_by(groups)
local most = accepted + 200 -- a bound, for those of the oldest that have to stay

local function unread(id) return least and after(id, least) end

local function forget(id, key)
  if unread(id) or held(id, groups) then
    if not drop then return end
    dropped = dropped + 1
    for _, g in ipairs(groups) do
      call('XACK', MESSAGES, g.name, id)
      call('ZREM', B .. 'later:' .. g.name, id)
      call('HDEL', B .. 'tries:' .. g.name, id)
      local ready = B .. 'ready:' .. g.name
      call('ZREM', ready, id)
      for _, filter in ipairs(call('ZRANGE', B .. 'filters:' .. g.name, 0, -1)) do
        call('ZREM', ready .. '#' .. filter, id)
      end
    end
  end
  call('XDEL', MESSAGES, id)
  call('ZREM', B .. 'kept:' .. key, id)
end

if length > 0 then
  local touched = {}
  for j = 1, accepted do
    if string.find(ids[j], '^%d+-%d+$') then -- else it is yet to come
      local key = key_of(texts[j])
      call('ZADD', B .. 'kept:' .. key, score(ids[j]), ids[j])
      touched[key] = true
    end
  end
  for key in pairs(touched) do
    local kept = B .. 'kept:' .. key
    local excess = call('ZCARD', kept) - length
    if excess > 0 then
      for _, id in ipairs(call('ZRANGE', kept, 0, math.min(excess, most) - 1)) do
        if unread(id) and not drop then break end
        forget(id, key)
      end
    end
  end
end
if age > 0 then
  for _, e in ipairs(call('XRANGE', MESSAGES, '-', now - age, 'COUNT', most)) do
    if unread(e[1]) and not drop then break end
    forget(e[1], key_of(e[2][2]))
  end
end
return {accepted, problem, dropped}
