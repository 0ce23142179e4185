-- ARGV: group, then consumer, id, attempt for each message whose handling begins. Counts that, once for
-- each delivery.
write_first()
for i = 2, #ARGV, 3 do
  local id, attempt = ARGV[i + 1], ARGV[i + 2]
  local p = call('XPENDING', MESSAGES, G, id, id, 1, ARGV[i])[1]
  if p and p[4] == tonumber(attempt) then
    local count, last = string.match(call('HGET', BEGUN, id) or '0 0', '^(%d+) (%d+)$')
    if last ~= attempt then call('HSET', BEGUN, id, count + 1 .. ' ' .. attempt) end
  end
end
return 1
