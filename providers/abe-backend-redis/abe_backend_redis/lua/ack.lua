-- ARGV: group, consumer, attempt, epoch, whether this may have been done before, ids. Returns the ids
-- that are not this consumer's, or not of this attempt: nothing is done to them.
local me, attempt, again = ARGV[2], tonumber(ARGV[3]), ARGV[5] == '1'
if ARGV[4] == (call('GET', EPOCH) or '0') then
  settle({unpack(ARGV, 6)})
  return {}
end
local lost, mine = {}, {}
for i = 6, #ARGV do
  local id = ARGV[i]
  local p = call('XPENDING', MESSAGES, G, id, id, 1, me)[1]
  if p and p[4] == attempt then
    mine[#mine + 1] = id
  elseif not (again and is_done(id)) then
    lost[#lost + 1] = id
  end
end
settle(mine)
return lost
