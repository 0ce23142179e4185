-- ARGV: group, consumer, whether to keep settled ones, then key, number, and that many id, attempt.
-- Returns the ids that are not this consumer's, or not of this attempt: nothing is done to them.
local me, keep = ARGV[2], ARGV[3] == '1'
local total = (#ARGV - 3) / 2
local mine = {}
local cap = total * 2 + 64
local held = call('XPENDING', LOG, G, '-', '+', cap, me)
for _, p in ipairs(held) do mine[p[1]] = p[4] end

local lost, acked, by_key = {}, {}, {}
local i = 4
while ARGV[i] do
  local key, n = ARGV[i], tonumber(ARGV[i + 1])
  i = i + 2
  for _ = 1, n do
    local id, attempt = ARGV[i], tonumber(ARGV[i + 1])
    i = i + 2
    if not mine[id] and #held == cap then
      local p = call('XPENDING', LOG, G, id, id, 1, me)[1]
      mine[id] = p and p[4]
    end
    if mine[id] == attempt then
      acked[#acked + 1] = id
      mine[id] = nil
      add(by_key, key, id)
    else
      lost[#lost + 1] = id
    end
  end
end
if #acked > 0 then
  call('XACK', LOG, G, unpack(acked))
  done(by_key, keep)
end
return lost
