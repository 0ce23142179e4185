-- ARGV: group, consumer. Forgets a consumer that holds nothing.
if group_named(G) and #call('XPENDING', MESSAGES, G, '-', '+', 1, ARGV[2]) == 0 then
  call('XGROUP', 'DELCONSUMER', MESSAGES, G, ARGV[2])
  call('DEL', ANSWER .. ARGV[2])
end
collect()
return 1
