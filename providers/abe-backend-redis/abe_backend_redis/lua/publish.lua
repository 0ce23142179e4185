-- ARGV: (group, unused), most messages in the namespace, most to retain of a key, most age in ms,
-- whether to drop unsettled ones, then key, payload, headers, delay in ms for each message.
local limit, length, age = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now = clock()
local room = math.huge
if limit > 0 then room = limit - call('XLEN', LOG) end
local accepted, problem = 0, ''
local touched = {}

for i = 6, #ARGV, 4 do
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
  local stored
  if headers == '' then
    stored = redis.pcall('XADD', B .. 'stream:' .. key, id, 'p', payload)
  else
    stored = redis.pcall('XADD', B .. 'stream:' .. key, id, 'p', payload, 'h', headers)
  end
  if type(stored) == 'table' then
    call('XDEL', LOG, id)
    problem = stored.err
    break
  end
  if delay > 0 then call('ZADD', DUE, now + delay, id) end
  accepted = accepted + 1
  touched[key] = true
end

if length == 0 and age == 0 then
  if problem == '' then return accepted end
  return {accepted, problem, 0}
end

-- Retention. A message that a group has not settled stays, unless we were told to drop it.
local drop = ARGV[5] == '1'
local dropped = 0
local groups = all_groups()

local function forget(id, key)
  local wanted = needed(id, groups)
  if wanted and not drop then return false end
  if wanted then
    dropped = dropped + 1
    for _, g in ipairs(groups) do
      call('XACK', LOG, g.name, id)
      local parked = B .. 'parked:' .. g.name
      if call('HDEL', parked, id) == 1 then
        local ready = B .. 'ready:' .. g.name
        call('ZREM', B .. 'later:' .. g.name, id)
        call('ZREM', ready, id)
        call('ZREM', ready .. '#' .. key, id)
      end
    end
  end
  remove(key, {id})
  return true
end

if length > 0 then
  for key in pairs(touched) do
    local stream = B .. 'stream:' .. key
    local excess = math.min(call('XLEN', stream) - length, 1000)
    if excess > 0 then
      for _, e in ipairs(call('XRANGE', stream, '-', '+', 'COUNT', excess)) do
        if not forget(e[1], key) then break end
      end
    end
  end
end
if age > 0 then
  for _, e in ipairs(call('XRANGE', LOG, '-', now - age, 'COUNT', accepted + 100)) do
    if not forget(e[1], e[2][2]) then break end
  end
end
return {accepted, problem, dropped}
