-- ARGV: group, whether to keep settled ones, most messages to drop. After a purge: drops what is in
-- flight or has come since, then the group and its keys. Returns 1 once done, 0 if there is more to
-- drop.
local most = tonumber(ARGV[3])
if not group_named(G) then return 1 end
local reply = call('XREADGROUP', 'GROUP', G, 'delete-0', 'COUNT', most, 'STREAMS', LOG, '>')
local more = reply and #reply[1][2] == most
local by_key, delayed, total = {}, {}, 0

local function drop(id)
  total = total + 1
  local entry = entry_of(id)
  if entry then
    add(by_key, entry.k, id)
    if entry.d then delayed[#delayed + 1] = id end
  end
  return entry
end

local pending = call('XPENDING', LOG, G, '-', '+', most)
for _, p in ipairs(pending) do
  call('XACK', LOG, G, p[1])
  drop(p[1])
end
for i, id in ipairs(call('HKEYS', PARKED)) do
  if i > most then break end
  local entry = drop(id)
  call('ZREM', LATER, id)
  if entry then unpark(G, id, entry.k) else call('HDEL', PARKED, id) end
end
done(by_key, ARGV[2] == '1', total)
forget_due(delayed)
if more or #pending == most or call('EXISTS', PARKED) == 1 then return 0 end
for _, key in ipairs(call('SMEMBERS', KEYS_READY)) do call('DEL', READY .. '#' .. key) end
call('DEL', PARKED, READY, KEYS_READY, LATER, SWEEP, DEAD, EPOCH, BEGUN)
call('XGROUP', 'DESTROY', LOG, G)
tidy_up()
call('SET', GONE, 1, 'EX', 3600)
notify()
call('EXPIRE', WAKE, 60)
return 1
