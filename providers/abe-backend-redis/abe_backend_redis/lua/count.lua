-- ARGV: group, phase, where to begin, the last entry to count ('' = the last there is now). One page of
-- the group's numbers, or of what is retained for a group to come if the first phase is 'stream':
-- returns the next phase, where it begins, the last entry to count, and key, column, number, time of
-- the oldest for each key and column found.
local phase, start, final = ARGV[2], ARGV[3], ARGV[4]
local PAGE = 500
local rows = {}

local function count(key, column, id)
  local when = tonumber(string.match(id, '^%d+'))
  local row = rows[column .. key]
  if not row then
    rows[column .. key] = {key, column, 1, when}
  else
    row[3], row[4] = row[3] + 1, math.min(row[4], when)
  end
end

local function answer(next, from)
  local flat = {}
  for _, row in pairs(rows) do
    for i = 1, 4 do flat[#flat + 1] = row[i] end
  end
  return {next, from, final, flat}
end

-- Messages of the group that are in a sorted set.
local function count_set(set, column, next)
  local from = tonumber(start)
  local page = call('ZRANGE', set, from, from + PAGE - 1)
  for _, id in ipairs(page) do
    local text = entry_of(id)
    if text then count(key_of(text), column, id) end
  end
  if #page == PAGE then return answer(phase, tostring(from + PAGE)) end
  return answer(next, next == 'later' and '0' or '-')
end

if final == '' then
  advance(clock())
  final = call('EXISTS', MESSAGES) == 1 and last_entry() or '0-0'
end
local group = group_named(G)
if phase == 'ready' then
  if not group then return answer('end', '') end
  return count_set(READY, 'ready', 'later')
elseif phase == 'later' then
  return count_set(LATER, 'delayed', 'held')
elseif phase == 'held' then
  local page = call('XPENDING', MESSAGES, G, start, '+', PAGE)
  for _, p in ipairs(page) do
    local text = entry_of(p[1])
    if text then count(key_of(text), 'in_flight', p[1]) end
  end
  if #page == PAGE then return answer('held', '(' .. page[#page][1]) end
  return answer('dead', '-')
elseif phase == 'dead' then
  local page = call('XRANGE', DEAD, start, '+', 'COUNT', PAGE)
  for _, e in ipairs(page) do count(fields(e[2]).k, 'dead', e[1]) end
  if #page == PAGE then return answer('dead', '(' .. page[#page][1]) end
  if not group then return answer('end', '') end
  return answer('stream', '(' .. group['last-delivered-id'])
elseif phase == 'stream' then
  local page = call('XRANGE', MESSAGES, start, final, 'COUNT', PAGE)
  for _, e in ipairs(page) do
    if is_ours(e[2][2], fields(e[2], 3)) then count(key_of(e[2][2]), 'ready', e[1]) end
  end
  if #page == PAGE then return answer('stream', '(' .. page[#page][1]) end
  return answer('scheduled', '0')
end
local from = tonumber(start)
local page = call('ZRANGE', SCHEDULED, from, from + PAGE - 1)
for _, id in ipairs(page) do
  local m = cmsgpack.unpack(call('HGET', DELAYED, id))
  if is_ours(m.m, m) then count(key_of(m.m), 'delayed', id) end
end
if #page == PAGE then return answer('scheduled', tostring(from + PAGE)) end
return answer('end', '')
