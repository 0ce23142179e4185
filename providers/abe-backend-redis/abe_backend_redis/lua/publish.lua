-- ARGV: (group, unused), most messages in the namespace, most to retain of a key, most age in ms,
-- whether to drop unsettled ones, how many groups the client has open and these, then key, payload,
-- headers, delay in ms for each message.
local limit, length, age = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now = clock()
local room = math.huge
if limit > 0 then room = limit - call('XLEN', LOG) end
local accepted, problem = 0, ''
local touched, delayed = {}, false
local open = tonumber(ARGV[6])
if open > 0 and call('EXISTS', LOG) == 0 then make_again(7, 6 + open) end

for i = 7 + open, #ARGV, 4 do
  local key, payload, headers, delay = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
  if accepted >= room then
    problem = 'FULL'
    break
  end
  local id
  if delay > 0 then
    id = redis.pcall('XADD', LOG, '*', 'k', key, 'd', 1)
  else
    id = redis.pcall('XADD', LOG, '*', 'k', key)
  end
  if type(id) == 'table' then
    problem = id.err
    break
  end
  local stored = id
  if delay > 0 then
    stored = redis.pcall('ZADD', DUE, now + delay, id)
  end
  if type(stored) ~= 'table' then
    if headers == '' then
      stored = redis.pcall('XADD', B .. 'stream:' .. key, id, 'p', payload)
    else
      stored = redis.pcall('XADD', B .. 'stream:' .. key, id, 'p', payload, 'h', headers)
    end
  end
  if type(stored) == 'table' then
    call('XDEL', LOG, id)
    problem = stored.err
    break
  end
  accepted = accepted + 1
  touched[key] = true
  delayed = delayed or delay > 0
end

-- The server is no primary any more, or the slot is moving: nothing was done here.
for _, sign in ipairs({'READONLY', 'non local key'}) do
  if accepted == 0 and string.find(problem, sign, 1, true) then return redis.error_reply(problem) end
end

-- Of those that nobody read before they were due, nobody has forgotten when that was.
if delayed then call('ZREMRANGEBYSCORE', DUE, '-inf', now) end

if length == 0 and age == 0 then
  if problem == '' then return accepted end
  return {accepted, problem, 0}
end

-- Retention. A message that a group has not settled stays, unless we were told to drop it.
local drop = ARGV[5] == '1'
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
      call('XACK', LOG, g.name, id)
      if call('HEXISTS', B .. 'parked:' .. g.name, id) == 1 then
        call('ZREM', B .. 'later:' .. g.name, id)
        unpark(g.name, id, key)
      end
    end
  end
  remove(key, {id})
  call('ZREM', DUE, id)
end

if length > 0 then
  for key in pairs(touched) do
    local stream = B .. 'stream:' .. key
    local excess = call('XLEN', stream) - length
    if excess > 0 then
      for _, e in ipairs(call('XRANGE', stream, '-', '+', 'COUNT', math.min(excess, most))) do
        if unread(e[1]) and not drop then break end
        forget(e[1], key)
      end
    end
  end
end
if age > 0 then
  for _, e in ipairs(call('XRANGE', LOG, '-', now - age, 'COUNT', most)) do
    if unread(e[1]) and not drop then break end
    forget(e[1], e[2][2])
  end
end
return {accepted, problem, dropped}
