-- ARGV: group, most messages, filter, phase, where to begin. Returns one page of what the group could take:
-- the next phase, where it begins, and messages.
local limit, matches, phase, start = tonumber(ARGV[2]), matcher(ARGV[3]), ARGV[4], ARGV[5]
local out, extras = {}, {}
local group = group_named(G)
if phase == 'ready' then
  if start == '0' then advance(clock()) end
  local from = tonumber(start)
  local page = call('ZRANGE', READY, from, from + 499)
  for _, id in ipairs(page) do
    local text, more = entry_of(id)
    if text and matches(key_of(text)) and #out < limit * 2 then
      append(out, extras, id, text, tonumber(call('HGET', TRIES, id) or '0') + 1, more)
    end
  end
  if #page == 500 then return {'ready', from + 500, out, extras} end
  return {'stream', group and '(' .. group['last-delivered-id'] or '-', out, extras}
end
local page = call('XRANGE', MESSAGES, start, '+', 'COUNT', 500)
for _, e in ipairs(page) do
  local text, more = e[2][2], fields(e[2], 3)
  if #out < limit * 2 and matches(key_of(text)) and is_ours(text, more) then
    append(out, extras, e[1], text, 1, more)
  end
end
if #page < 500 then return {'end', '', out, extras} end
return {'stream', '(' .. page[#page][1], out, extras}
