-- ARGV: group, consumer, whether to keep settled ones, number of messages, then key, attempt, epoch,
-- number, and that many ids. Returns id and attempt of those that are not this consumer's, or not of
-- this attempt: nothing is done to them.
local me, keep, total = ARGV[2], ARGV[3] == '1', tonumber(ARGV[4])
local epoch = call('GET', EPOCH) or '0'
local held, mine
local cap = total * 2 + 64

local function is_mine(id, attempt)
  if not held then
    held, mine = call('XPENDING', LOG, G, '-', '+', cap, me), {}
    for _, p in ipairs(held) do mine[p[1]] = p[4] end
  end
  if not mine[id] and #held == cap then
    local p = call('XPENDING', LOG, G, id, id, 1, me)[1]
    mine[id] = p and p[4]
  end
  return mine[id] == attempt
end

local lost, by_key, acked = {}, {}, 0
local i = 5
while ARGV[i] do
  local key, attempt = ARGV[i], tonumber(ARGV[i + 1])
  local first, last = i + 4, i + 3 + tonumber(ARGV[i + 3])
  local ids
  if ARGV[i + 2] == epoch then
    ids = {unpack(ARGV, first, last)}
  else
    ids = {}
    for j = first, last do
      if is_mine(ARGV[j], attempt) then
        ids[#ids + 1] = ARGV[j]
      else
        lost[#lost + 1], lost[#lost + 2] = ARGV[j], attempt
      end
    end
  end
  if #ids > 0 then
    acked = acked + call('XACK', LOG, G, unpack(ids))
    local known = by_key[key]
    if known then
      for _, id in ipairs(ids) do known[#known + 1] = id end
    else
      by_key[key] = ids
    end
  end
  i = last + 1
end
done(by_key, keep, acked)
return lost
