-- ARGV: group, whether to keep settled ones, then consumer, id, attempt, whether this may have been
-- done before, key, outcome, delay in ms, headers of the dead letter for each message. Returns the
-- positions of those that were not theirs.
write_first()
local keep = ARGV[2] == '1'
local now = clock()
local lost, by_key, buried, back = {}, {}, 0, false
for i = 3, #ARGV, 8 do
  local me, id, attempt, again = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3] == '1'
  local key, outcome, delay = ARGV[i + 4], ARGV[i + 5], tonumber(ARGV[i + 6])
  local p = call('XPENDING', LOG, G, id, id, 1, me)[1]
  if not p or p[4] ~= attempt then
    -- A nack or release that was done before has brought the message back, as a lapsed lease has.
    if not again or outcome == 'reject' and not is_done(id) then lost[#lost + 1] = (i - 3) / 8 end
  else
    if outcome == 'reject' then
      local entry, body = entry_of(id), body_of(key, id)
      if body then
        call('XADD', DEAD, '*', 'i', entry and entry.o or id, 'k', key, 'n', attempt,
          'p', body.p, 'h', body.h or '', 'd', ARGV[i + 7])
      end
      call('XACK', LOG, G, id)
      add(by_key, key, id)
      buried = buried + 1
    else
      back = true
      local earlier = attempt
      if outcome == 'release' then
        earlier = attempt - 1
        local begun = call('HGET', BEGUN, id)
        local count, last = string.match(begun or '', '^(%d+) (%d+)$')
        if tonumber(last) == attempt then call('HSET', BEGUN, id, count - 1 .. ' 0') end
      end
      put_back(id, key, earlier, delay > 0 and now + delay or nil)
    end
  end
end
done(by_key, keep, buried)
if back then notify() end
return lost
