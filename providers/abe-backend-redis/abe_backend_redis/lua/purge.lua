-- ARGV: group, filter, consumer, phase, where to begin, the last entry to drop ('' = the last there is
-- now). Drops one page of what waits for the group and matches; returns the next phase, where it
-- begins, the last entry to drop, and how many were dropped.
local matches, me, phase, start, final = matcher(ARGV[2]), ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local PAGE = 500
local dropped = {}

local function answer(next, from)
  settle(dropped)
  return {next, from, final, #dropped}
end

-- Drops the messages of the group in a sorted set, as far as they match.
local function drop_set(set, next)
  local from = tonumber(start)
  local page = call('ZRANGE', set, from, from + PAGE - 1)
  for _, id in ipairs(page) do
    local text = entry_of(id)
    if text and (after(id, final) or not matches(key_of(text))) then
      from = from + 1
    else
      call('ZREM', LATER, id)
      unready(id)
      call('HDEL', TRIES, id)
      dropped[#dropped + 1] = text and id
    end
  end
  if #page == PAGE then return answer(phase, tostring(from)) end
  return answer(next, '0')
end

local groups = all_groups()
local group = group_named(G)
if phase == 'later' and #groups == 0 then phase, start = 'all', '-' end
if final == '' then final = call('EXISTS', MESSAGES) == 1 and last_entry() or '0-0' end
if phase == 'scheduled' then
  local from, others = tonumber(start), {}
  for _, g in ipairs(groups) do
    if g.name ~= G then others[#others + 1] = g.name end
  end
  local page = call('ZRANGE', SCHEDULED, from, from + PAGE - 1)
  local count = 0
  for _, id in ipairs(page) do
    local m = cmsgpack.unpack(call('HGET', DELAYED, id))
    if not matches(key_of(m.m)) or not is_ours(m.m, m) then
      from = from + 1
    else
      count = count + 1
      local left = {}
      for _, name in ipairs(others) do
        if is_for(m, name) then left[#left + 1] = name end
      end
      if #left > 0 then
        m.x = m.x and m.x .. ' ' .. G or G
        call('HSET', DELAYED, id, cmsgpack.pack(m))
        from = from + 1
      else
        call('ZREM', SCHEDULED, id)
        call('HDEL', DELAYED, id)
      end
    end
  end
  if #groups == 0 then tidy_up() end
  if #page == PAGE then return {'scheduled', tostring(from), final, count} end
  return {'end', '', final, count}
elseif phase == 'all' then
  -- There is no group at all, so everything retained is dropped.
  local page = call('XRANGE', MESSAGES, start, final, 'COUNT', PAGE)
  for _, e in ipairs(page) do
    if matches(key_of(e[2][2])) then
      call('XDEL', MESSAGES, e[1])
      dropped[#dropped + 1] = e[1]
    end
  end
  local count = #dropped
  if #page == PAGE then return {'all', '(' .. page[#page][1], final, count} end
  return {'scheduled', '0', final, count}
elseif not group then
  return {'end', '', final, 0}
elseif phase == 'later' then
  if start == '0' then advance(clock()) end
  return drop_set(LATER, 'ready')
elseif phase == 'ready' then
  return drop_set(READY, 'stream')
end
local reply = call('XREADGROUP', 'GROUP', G, me, 'COUNT', PAGE, 'STREAMS', MESSAGES, '>')
local page = reply and reply[1][2] or {}
local parked = false
for _, e in ipairs(page) do
  local id, text = e[1], e[2][2]
  if not is_ours(text, fields(e[2], 3)) then
    settle({id})
  elseif matches(key_of(text)) and not after(id, final) then
    dropped[#dropped + 1] = id
  else
    put_back(id, text, 0)
    parked = true
  end
end
if parked then notify() end
if #page == PAGE and not after(page[#page][1], final) then return answer('stream', '') end
local result = answer('scheduled', '0')
call('XGROUP', 'DELCONSUMER', MESSAGES, G, me)
return result
