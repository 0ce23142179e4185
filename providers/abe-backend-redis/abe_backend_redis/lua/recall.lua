-- ARGV: group, then consumer and number for each answer that did not arrive. What it handed over goes
-- back uncounted, and if the request is yet to arrive it gets nothing.
write_first()
if not group_named(G) then return 0 end
local count = 0

local function give_back(p)
  local text = p and entry_of(p[1])
  if text then
    put_back(p[1], text, p[4] - 1)
    count = count + 1
  end
end

for i = 2, #ARGV, 2 do
  local me, answer = ARGV[i], ANSWER .. ARGV[i]
  local ids = {}
  for word in string.gmatch(call('GET', answer) or '', '%S+') do ids[#ids + 1] = word end
  if ids[1] == ARGV[i + 1] then
    if ids[2] ~= '-' then
      for _, p in ipairs(call('XPENDING', MESSAGES, G, ids[2], ids[3], 5000, me)) do give_back(p) end
    end
    for j = 4, #ids do give_back(call('XPENDING', MESSAGES, G, ids[j], ids[j], 1, me)[1]) end
  end
  call('SET', answer, '', 'PX', 60000)
end
if count > 0 then notify() end
return count
