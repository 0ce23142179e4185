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

local lost, by_key, all, n = {}, {}, {}, 0
local i = 5
while ARGV[i] do
  local key, attempt = ARGV[i], tonumber(ARGV[i + 1])
  local current = ARGV[i + 2] == epoch
  local first, last = i + 4, i + 3 + tonumber(ARGV[i + 3])
  local ids = by_key[key] or {}
  local m = #ids
  for j = first, last do
    local id = ARGV[j]
    if current or is_mine(id, attempt) then
      n, m = n + 1, m + 1
      all[n], ids[m] = id, id
    else
      lost[#lost + 1] = id
      lost[#lost + 1] = attempt
    end
  end
  if m > 0 then by_key[key] = ids end
  i = last + 1
end
if n > 0 then done(by_key, keep, call('XACK', LOG, G, unpack(all))) end
return lost
