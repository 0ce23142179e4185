-- ARGV: group, ms since when the lease shall count as begun, then consumer, id, attempt for each.
-- Returns the positions of those that were not theirs any more.
local idle = tonumber(ARGV[2])
local lost = {}
for i = 3, #ARGV, 3 do
  local me, id = ARGV[i], ARGV[i + 1]
  local p = call('XPENDING', MESSAGES, G, id, id, 1, me)[1]
  local ours = p and p[4] == tonumber(ARGV[i + 2])
  if not ours or #call('XCLAIM', MESSAGES, G, me, 0, id, 'IDLE', idle, 'JUSTID') == 0 then
    lost[#lost + 1] = (i - 3) / 3
  end
end
return lost
