-- ARGV: group, phase, where to begin, the last entry to count ('' = the last there is now). One page of
-- the group's numbers, or of what is retained for a group to come if the first phase is 'log':
-- returns the next phase, where it begins, the last entry to count, and key, column, number, oldest
-- id for each key and column found.
local phase, start, final = ARGV[2], ARGV[3], ARGV[4]
local now = clock()
local PAGE = 1000
local rows = {}

local function count(key, column, id)
  local name = column .. key
  local row = rows[name]
  if not row then rows[name] = {key, column, 1, id} else
    row[3] = row[3] + 1
    if id ~= '' and after(row[4], id) then row[4] = id end
  end
end

local function answer(next, from)
  local flat = {}
  for _, row in pairs(rows) do
    for i = 1, 4 do flat[#flat + 1] = row[i] end
  end
  return {next, from, final, flat}
end

if call('EXISTS', LOG) == 0 then return answer('end', '') end
if final == '' then final = last_entry() end

if phase == 'ready' then
  local group = group_named(G)
  if not group then return answer('end', '') end
  advance(now)
  for _, key in ipairs(call('SMEMBERS', KEYS_READY)) do
    local own = READY .. '#' .. key
    local first = call('ZRANGE', own, 0, 0)[1]
    if first then rows[key] = {key, 'ready', call('ZCARD', own), first} end
  end
  return answer('held', '-')
end
if phase == 'held' then
  local page = call('XPENDING', LOG, G, start, '+', PAGE)
  for _, p in ipairs(page) do
    local entry = entry_of(p[1])
    if entry then count(entry.k, 'in_flight', p[1]) end
  end
  if #page == PAGE then return answer('held', '(' .. page[#page][1]) end
  return answer('later', '0')
end
if phase == 'later' then
  local from = tonumber(start)
  local page = call('ZRANGE', LATER, from, from + PAGE - 1)
  for _, id in ipairs(page) do
    local entry = entry_of(id)
    if entry then count(entry.k, 'delayed', id) end
  end
  if #page == PAGE then return answer('later', tostring(from + PAGE)) end
  return answer('dead', '-')
end
if phase == 'dead' then
  local page = call('XRANGE', DEAD, start, '+', 'COUNT', PAGE)
  for _, e in ipairs(page) do count(fields(e[2]).k, 'dead', '') end
  if #page == PAGE then return answer('dead', '(' .. page[#page][1]) end
  local group = group_named(G)
  if not group then return answer('end', '') end
  return answer('log', '(' .. group['last-delivered-id'])
end
local page = call('XRANGE', LOG, start, final, 'COUNT', PAGE)
for _, e in ipairs(page) do
  local id, entry = e[1], fields(e[2])
  entry.k = entry.k or ''
  if not entry.g or entry.g == G then
    local due = entry.d and tonumber(call('ZSCORE', DUE, id) or '')
    count(entry.k, due and due > now and 'delayed' or 'ready', id)
  end
end
if #page == PAGE then return answer('log', '(' .. page[#page][1]) end
return answer('end', '')
