-- ARGV: group, consumer, attempt, epoch, whether this may have been done before, whether to keep
-- settled ones, then for each key: the key, how many ids follow, and these. Returns the ids that are
-- not this consumer's, or not of this attempt: nothing is done to them.
local me, attempt, again, keep = ARGV[2], tonumber(ARGV[3]), ARGV[5] == '1', ARGV[6] == '1'
local current = ARGV[4] == (call('GET', EPOCH) or '0')
local held, mine
local cap = #ARGV * 2

local function is_mine(id)
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
local i = 7
while ARGV[i] do
  local ids, m = {}, 0
  local first, last = i + 2, i + 1 + tonumber(ARGV[i + 1])
  for j = first, last do
    local id = ARGV[j]
    if current or is_mine(id) then
      n, m = n + 1, m + 1
      all[n], ids[m] = id, id
    elseif not (again and is_done(id)) then
      lost[#lost + 1] = id
    end
  end
  if m > 0 then by_key[ARGV[i]] = ids end
  i = last + 1
end
if n > 0 then done(by_key, keep, call('XACK', LOG, G, unpack(all))) end
return lost
