-- ARGV: group, consumer. Forgets a consumer that holds nothing.
if group_named(G) and #call('XPENDING', LOG, G, '-', '+', 1, ARGV[2]) == 0 then
  call('XGROUP', 'DELCONSUMER', LOG, G, ARGV[2])
  call('DEL', ANSWER .. ARGV[2])
end
tidy(500)
return 1
