-- ARGV: group, most messages, where to begin ('' = at the ready ones), patterns.
-- Returns where to go on ('' = nothing more), and messages.
local limit, start = tonumber(ARGV[2]), ARGV[3]
local filtered, matches = ARGV[4] ~= nil, matcher(4)
local now = clock()
local out, extras = {}, {}
if start == '' then
  local group = group_named(G)
  start = '-'
  if group then
    advance(now)
    start = '(' .. group['last-delivered-id']
    for _, id in ipairs(ready_ids(limit, filtered, matches)) do
      local entry = entry_of(id)
      local body = entry and body_of(entry.k, id)
      if body and #out < limit * 3 then
        local attempt = tonumber(call('HGET', PARKED, id) or '0') + 1
        append(out, extras, id, entry.k, attempt, body, entry.o)
      end
    end
  end
end
if #out >= limit * 3 then return {'', out, extras} end
local page = call('XRANGE', LOG, start, '+', 'COUNT', 1000)
for _, e in ipairs(page) do
  if #out >= limit * 3 then return {'', out, extras} end
  local id, entry = e[1], fields(e[2])
  entry.k = entry.k or ''
  local due = entry.d and tonumber(call('ZSCORE', DUE, id) or '')
  if matches(entry.k) and (not entry.g or entry.g == G) and not (due and due > now) then
    local body = body_of(entry.k, id)
    if body then append(out, extras, id, entry.k, 1, body, entry.o) end
  end
end
if #page < 1000 then return {'', out, extras} end
return {'(' .. page[#page][1], out, extras}
