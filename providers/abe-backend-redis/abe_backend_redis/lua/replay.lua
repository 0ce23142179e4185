-- ARGV: group, most messages, where to begin, the last letter to take ('' = the last there is now),
-- ids (none = all). Publishes one page of dead letters again, for this group alone. Returns where to
-- go on ('' = nothing more), the last letter to take, and how many.
local limit, start, final = tonumber(ARGV[2]), ARGV[3], ARGV[4]
local wanted
if ARGV[5] then
  wanted = {}
  for i = 5, #ARGV do wanted[ARGV[i]] = true end
end
local PAGE = 500
local count = 0
local newest = call('XREVRANGE', DEAD, '+', '-', 'COUNT', 1)[1]
if not newest or not group_named(G) then return {'', '', 0} end
if final == '' then final = newest[1] end
local page = call('XRANGE', DEAD, start, final, 'COUNT', PAGE)
for _, e in ipairs(page) do
  if count >= limit then break end
  local letter = fields(e[2])
  if not wanted or wanted[letter.i] then
    local h = letter.h ~= '' and letter.h or nil
    local t = letter.t ~= '' and letter.t or nil
    local stored = store(letter.k .. ' ' .. letter.p, {h = h, i = letter.i, t = t, g = G})
    if type(stored) == 'table' then return stored end
    call('XDEL', DEAD, e[1])
    count = count + 1
  end
end
if call('XLEN', DEAD) == 0 then call('DEL', DEAD) end
if count >= limit or #page < PAGE then return {'', final, count} end
return {'(' .. page[#page][1], final, count}
