-- ARGV: group, most messages, where to begin ('' = at the ready ones), patterns.
-- Returns where to go on ('' = nothing more), and messages.
local limit, start = tonumber(ARGV[2]), ARGV[3]
local filtered, matches = ARGV[4] ~= nil, matcher(4)
local now = clock()
local out = {}
if start == '' then
  local group = group_named(G)
  start = '-'
  if group then
    advance(now)
    start = '(' .. group['last-delivered-id']
    for _, id in ipairs(ready_ids(limit, filtered, matches)) do
      local entry = entry_of(id)
      local body = entry and body_of(entry.k, id)
      if body and #out < limit * 6 then
        append(out, id, entry, tonumber(call('HGET', PARKED, id) or '0') + 1, body)
      end
    end
  end
end
if #out >= limit * 6 then return {'', out} end
local page = call('XRANGE', LOG, start, '+', 'COUNT', 1000)
for _, e in ipairs(page) do
  if #out >= limit * 6 then return {'', out} end
  local id, entry = e[1], fields(e[2])
  local due = entry.d and tonumber(call('ZSCORE', DUE, id) or '')
  if matches(entry.k) and (not entry.g or entry.g == G) and not (due and due > now) then
    local body = body_of(entry.k, id)
    if body then append(out, id, entry, 1, body) end
  end
end
if #page < 1000 then return {'', out} end
return {'(' .. page[#page][1], out}
