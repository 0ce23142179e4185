-- ARGV: group, phase, where to begin, the last entry to drop ('' = the last there is now), consumer,
-- whether to keep settled ones, patterns. Drops one page of what waits for the group and matches;
-- returns the next phase, where it begins, the last entry to drop, and how many were dropped.
local phase, start, final, me = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local keep, filtered, matches = ARGV[6] == '1', ARGV[7] ~= nil, matcher(7)
local PAGE = 500
local by_key, delayed, total, dropped = {}, {}, 0, 0

local function drop(id, entry)
  dropped, total = dropped + 1, total + 1
  add(by_key, entry.k, id)
  if entry.d then delayed[#delayed + 1] = id end
end

local function answer(next, from)
  done(by_key, keep, total)
  forget_due(delayed)
  return {next, from, final, dropped}
end

if call('EXISTS', LOG) == 0 then return answer('end', '') end
if final == '' then final = last_entry() end

if phase == 'later' then
  if not group_named(G) then return answer('end', '') end
  advance(clock())
  local from = tonumber(start)
  local page = call('ZRANGE', LATER, from, from + PAGE - 1)
  for _, id in ipairs(page) do
    local entry = entry_of(id)
    if entry and (after(id, final) or not matches(entry.k)) then
      from = from + 1
    else
      call('ZREM', LATER, id)
      call('HDEL', PARKED, id)
      if entry then drop(id, entry) end
    end
  end
  if #page == PAGE then return answer('later', tostring(from)) end
  return answer('ready', '')
end
if phase == 'ready' then
  local ids, sets = ready_ids(PAGE, filtered, matches)
  for i, id in ipairs(ids) do
    if after(id, final) then return answer('log', '') end
    local entry = entry_of(id)
    if entry then
      unpark(G, id, entry.k)
      drop(id, entry)
    else
      forget_vanished(id, sets[i])
    end
  end
  return answer(#ids == PAGE and 'ready' or 'log', '')
end
if phase == 'log' then
  local reply = call('XREADGROUP', 'GROUP', G, me, 'COUNT', PAGE, 'STREAMS', LOG, '>')
  local page = reply and reply[1][2] or {}
  local aside, parked, now = {}, false, clock()
  for _, e in ipairs(page) do
    local id, entry = e[1], fields(e[2])
    entry.k = entry.k or ''
    aside[#aside + 1] = id
    if entry.g and entry.g ~= G then
      add(by_key, entry.k, id)
      total = total + 1
    elseif matches(entry.k) and not after(id, final) then
      drop(id, entry)
    else
      local due = entry.d and tonumber(call('ZSCORE', DUE, id) or '')
      if due and due > now then postpone(id, 0, due) else park(id, entry.k, 0) end
      parked = true
    end
  end
  if #aside > 0 then call('XACK', LOG, G, unpack(aside)) end
  if parked then notify() end
  if #page == PAGE and not after(page[#page][1], final) then return answer('log', '') end
  call('XGROUP', 'DELCONSUMER', LOG, G, me)
  return answer('end', '')
end
-- phase 'all': there is no group at all, so everything retained is dropped.
local page = call('XRANGE', LOG, start, final, 'COUNT', PAGE)
for _, e in ipairs(page) do
  if matches(e[2][2]) then
    remove(e[2][2], {e[1]})
    call('ZREM', DUE, e[1])
    dropped = dropped + 1
  end
end
if #page == PAGE then return answer('all', '(' .. page[#page][1]) end
tidy_up()
return answer('end', '')
