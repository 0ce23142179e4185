-- Makes the group, which then sees everything that is retained, and tidies up after dead consumers.
if not group_named(G) then
  call('XGROUP', 'CREATE', LOG, G, '0', 'MKSTREAM')
  call('SET', EPOCH, clock())
end
call('DEL', GONE)
for _, c in ipairs(call('XINFO', 'CONSUMERS', LOG, G)) do
  local consumer = fields(c)
  -- Deleting a consumer deletes what it holds, so only one that holds nothing.
  if consumer.pending == 0 and consumer.idle > 3600000 then
    call('XGROUP', 'DELCONSUMER', LOG, G, consumer.name)
  end
end
tidy(500)
return 1
