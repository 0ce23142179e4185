-- ARGV: group, whether to keep settled ones, then consumer, id, attempt, key, outcome, delay in ms,
-- headers of the dead letter for each message. Returns the positions of those that were not theirs.
local keep = ARGV[2] == '1'
local now = clock()
local lost, by_key, buried, back = {}, {}, 0, false
for i = 3, #ARGV, 7 do
  local me, id, attempt, key = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  local outcome, delay = ARGV[i + 4], tonumber(ARGV[i + 5])
  local p = call('XPENDING', LOG, G, id, id, 1, me)[1]
  if not p or p[4] ~= attempt then
    lost[#lost + 1] = (i - 3) / 7
  else
    if outcome == 'reject' then
      call('HDEL', PARKED, id) -- a first write, as in put_back
      local entry, body = entry_of(id), body_of(key, id)
      if body then
        call('XADD', DEAD, '*', 'i', entry and entry.o or id, 'k', key, 'n', attempt,
          'p', body.p, 'h', body.h or '', 'd', ARGV[i + 6])
      end
      call('XACK', LOG, G, id)
      add(by_key, key, id)
      buried = buried + 1
    else
      back = true
      local earlier = outcome == 'nack' and attempt or attempt - 1
      put_back(id, key, earlier, delay > 0 and now + delay or nil)
    end
  end
end
done(by_key, keep, buried)
if back then notify() end
return lost
