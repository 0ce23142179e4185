-- ARGV: group, consumer, whether to keep settled ones, number of messages, then key, attempt, number,
-- and that many ids. Returns id and attempt of those that are not this consumer's, or not of this
-- attempt: nothing is done to them.
local me, keep, total = ARGV[2], ARGV[3] == '1', tonumber(ARGV[4])
local mine = {}
local cap = total * 2 + 64
local held = call('XPENDING', LOG, G, '-', '+', cap, me)
for _, p in ipairs(held) do mine[p[1]] = p[4] end

local lost, acked, by_key = {}, {}, {}
local i, n = 5, 0
while ARGV[i] do
  local key, attempt, last = ARGV[i], tonumber(ARGV[i + 1]), i + 2 + tonumber(ARGV[i + 2])
  local ids = by_key[key] or {}
  by_key[key] = ids
  for j = i + 3, last do
    local id = ARGV[j]
    if not mine[id] and #held == cap then
      local p = call('XPENDING', LOG, G, id, id, 1, me)[1]
      mine[id] = p and p[4]
    end
    if mine[id] == attempt then
      n = n + 1
      acked[n] = id
      mine[id] = nil
      ids[#ids + 1] = id
    else
      lost[#lost + 1] = id
      lost[#lost + 1] = attempt
    end
  end
  i = last + 1
end
if n > 0 then
  call('XACK', LOG, G, unpack(acked))
  done(by_key, keep)
end
return lost
