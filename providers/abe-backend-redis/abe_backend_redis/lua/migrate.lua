-- ARGV: (group, unused), most entries. Brings a namespace to format 2, some entries for each call; meanwhile nothing else
-- is done with it. Format 1 was a stream `log` with k key, d if delayed until `due`, g and o for h and i
-- of today, and a stream for the payloads of each key. Returns 1 when all is done.
local OLD, now, most = B .. 'format1', clock(), tonumber(ARGV[2])
if type(format) == 'table' then
  call('RENAME', KEYS[1], OLD)
  call('SET', KEYS[1], '1')
elseif format ~= '1' then
  return 1
end
local groups, kept = {}, call('EXISTS', B .. 'kept') == 1
for _, row in ipairs(call('XINFO', 'GROUPS', OLD)) do groups[#groups + 1] = fields(row) end
local largest = tonumber(call('HGET', META, 'migrated largest') or '0')

-- Those who wait for a delayed message; nil if all do.
local function waiting(id)
  local names = {}
  for _, g in ipairs(groups) do
    if after(id, g['last-delivered-id']) or call('ZSCORE', B .. 'later:' .. g.name, id) then
      names[#names + 1] = g.name
    end
  end
  return #names < #groups and table.concat(names, ' ') or nil
end

local function move(id, key, entry, payload, headers)
  local text = key .. ' ' .. payload
  local due = entry.d and tonumber(call('ZSCORE', B .. 'due', id) or '')
  if due and due > now then
    local m = {m = text, h = headers, i = id, t = string.match(id, '^%d+'), g = waiting(id)}
    if m.g == '' then return end
    call('HSET', DELAYED, id, cmsgpack.pack(m))
    call('ZADD', SCHEDULED, due, id)
    for _, g in ipairs(groups) do
      call('ZREM', B .. 'later:' .. g.name, id)
      call('HDEL', B .. 'parked:' .. g.name, id)
    end
    return
  end
  local flat = {'m', text}
  for name, value in pairs({h = headers, i = entry.o, g = entry.g}) do
    flat[#flat + 1] = name
    flat[#flat + 1] = value
  end
  redis.pcall('XADD', MESSAGES, id, unpack(flat)) -- it is there if this was interrupted
  if kept then call('ZADD', B .. 'kept:' .. key, score(id), id) end
end

local from = call('HGET', META, 'migrated')
local page = call('XRANGE', OLD, from and '(' .. from or '-', '+', 'COUNT', most)
for _, e in ipairs(page) do
  local id, entry = e[1], fields(e[2])
  local stream = entry.k and B .. 'stream:' .. entry.k
  local found = stream and call('XRANGE', stream, id, id)[1]
  local body = found and fields(found[2])
  if body and body.p then
    move(id, entry.k, entry, body.p, body.h)
    largest = math.max(largest, #entry.k + 1 + #body.p)
    call('XDEL', stream, id)
    if call('XLEN', stream) == 0 then call('DEL', stream) end
  end
end
call('HSET', META, 'migrated largest', largest)
if #page > 0 then call('HSET', META, 'migrated', page[#page][1]) end
if #page == most then return 0 end

for _, g in ipairs(groups) do
  local ready, tries = B .. 'ready:' .. g.name, B .. 'tries:' .. g.name
  local parked, keys = B .. 'parked:' .. g.name, B .. 'keys:' .. g.name
  redis.pcall('XGROUP', 'CREATE', MESSAGES, g.name, g['last-delivered-id'], 'MKSTREAM')
  local function wait(id, count)
    if count > 0 then call('HSET', tries, id, count) end
    if not call('ZSCORE', B .. 'later:' .. g.name, id) then call('ZADD', ready, score(id), id) end
  end
  -- What is in hands comes back: their owners cannot settle it any more.
  local start = '-'
  repeat
    local pending = call('XPENDING', OLD, g.name, start, '+', 1000)
    for _, p in ipairs(pending) do wait(p[1], p[4]) end
    start = pending[1] and '(' .. pending[#pending][1]
  until not start
  local cursor = '0'
  repeat
    local answer = call('HSCAN', parked, cursor, 'COUNT', 1000)
    cursor = answer[1]
    for i = 1, #answer[2], 2 do wait(answer[2][i], tonumber(answer[2][i + 1])) end
  until cursor == '0'
  for _, key in ipairs(call('SMEMBERS', keys)) do call('DEL', ready .. '#' .. key) end
  call('DEL', parked, keys, B .. 'sweep:' .. g.name)
  call('INCR', B .. 'epoch:' .. g.name)
  notify(g.name)
end
for _, key in ipairs(call('SMEMBERS', B .. 'dirty')) do call('DEL', B .. 'stream:' .. key) end
call('DEL', OLD, B .. 'due', B .. 'dirty', B .. 'kept')
call('HDEL', META, 'migrated', 'migrated largest')
call('HSET', META, 'largest', largest)
call('SET', KEYS[1], '2')
return 1
