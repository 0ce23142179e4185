-- ARGV: group, most messages to drop. After a purge: drops what is in flight or has come since, then the
-- group and its keys. Returns 1 once done, 0 if there is more to drop.
local most = tonumber(ARGV[2])
if not group_named(G) then return 1 end
local ids, full = {}, false
local reply = call('XREADGROUP', 'GROUP', G, 'delete-0', 'COUNT', most, 'STREAMS', MESSAGES, '>')
full = reply and #reply[1][2] == most
local pending = call('XPENDING', MESSAGES, G, '-', '+', most)
for _, p in ipairs(pending) do ids[#ids + 1] = p[1] end
for _, set in ipairs({READY, LATER}) do
  local page = call('ZRANGE', set, 0, 999)
  for _, id in ipairs(page) do
    ids[#ids + 1] = id
    call('ZREM', set, id)
  end
  full = full or #page == 1000
end
settle(ids)
if full or #pending == most then return 0 end
for _, filter in ipairs(known_filters()) do call('DEL', READY .. '#' .. filter) end
call('DEL', READY, LATER, TRIES, FILTERS, SWEEP, DEAD, EPOCH, BEGUN, B .. 'filter:' .. G)
call('XGROUP', 'DESTROY', MESSAGES, G)
collect()
tidy_up()
call('SET', GONE, 1, 'EX', 3600)
notify()
call('EXPIRE', WAKE, 60)
return 1
