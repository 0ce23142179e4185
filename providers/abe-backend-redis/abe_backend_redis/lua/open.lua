-- ARGV: group, then the groups that the client has open. Makes the group, which then sees everything
-- that is retained, and tidies up after dead consumers.
write_first()
call('DEL', GONE)
collect()
if not group_named(G) then
  make(G)
  make_again(2, #ARGV)
end
for _, c in ipairs(call('XINFO', 'CONSUMERS', MESSAGES, G)) do
  local consumer = fields(c)
  -- Deleting a consumer deletes what it holds, so only one that holds nothing.
  if consumer.pending == 0 and consumer.idle > 3600000 then
    call('XGROUP', 'DELCONSUMER', MESSAGES, G, consumer.name)
  end
end
for _, filter in ipairs(call('ZRANGEBYSCORE', FILTERS, '-inf', clock() - 3600000)) do
  call('ZREM', FILTERS, filter)
  call('DEL', READY .. '#' .. filter, B .. 'sorting:' .. G .. '#' .. filter)
end
return 1
