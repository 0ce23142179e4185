-- ARGV: group. After a purge: drops what is in flight, then the group and all its keys.
-- Returns 1 once done, 0 if there is more to drop.
if not group_named(G) then return 1 end
local pending = call('XPENDING', LOG, G, '-', '+', 500)
local by_key = {}
for _, p in ipairs(pending) do
  call('XACK', LOG, G, p[1])
  local entry = entry_of(p[1])
  if entry then add(by_key, entry.k, p[1]) end
end
done(by_key, false, #pending)
if #pending == 500 then return 0 end
for _, key in ipairs(call('SMEMBERS', KEYS_READY)) do call('DEL', READY .. '#' .. key) end
call('DEL', PARKED, READY, KEYS_READY, LATER, SWEEP, DEAD)
call('XGROUP', 'DESTROY', LOG, G)
call('INCR', EPOCH)
call('SET', GONE, 1, 'EX', 3600)
notify()
call('EXPIRE', WAKE, 60)
return 1
