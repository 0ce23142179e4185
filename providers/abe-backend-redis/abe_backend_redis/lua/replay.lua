-- ARGV: group, most messages, where to begin, ids ('' = all). Publishes one page of dead letters
-- again, for this group alone. Returns where to go on ('' = nothing more) and how many.
local limit, start = tonumber(ARGV[2]), ARGV[3]
local wanted
if ARGV[4] then
  wanted = {}
  for i = 4, #ARGV do wanted[ARGV[i]] = true end
end
local PAGE = 500
local count = 0
if not group_named(G) then return {'', 0} end
local page = call('XRANGE', DEAD, start, '+', 'COUNT', PAGE)
for _, e in ipairs(page) do
  if count >= limit then break end
  local letter = fields(e[2])
  if not wanted or wanted[letter.i] then
    local id = call('XADD', LOG, '*', 'k', letter.k, 'g', G, 'o', letter.i)
    if letter.h == '' then
      call('XADD', B .. 'stream:' .. letter.k, id, 'p', letter.p)
    else
      call('XADD', B .. 'stream:' .. letter.k, id, 'p', letter.p, 'h', letter.h)
    end
    call('XDEL', DEAD, e[1])
    count = count + 1
  end
end
drop_empty(DEAD)
if count >= limit or #page < PAGE then return {'', count} end
return {'(' .. page[#page][1], count}
