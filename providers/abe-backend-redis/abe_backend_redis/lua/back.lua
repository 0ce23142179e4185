-- ARGV: group, then consumer, id, attempt, whether this may have been done before, outcome, delay in ms,
-- headers of the dead letter for each message. Returns the positions of those that were not theirs.
write_first()
local now = clock()
local lost, buried, back = {}, {}, false
for i = 2, #ARGV, 7 do
  local me, id, attempt, again = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3] == '1'
  local outcome, delay = ARGV[i + 4], tonumber(ARGV[i + 5])
  local p = call('XPENDING', MESSAGES, G, id, id, 1, me)[1]
  if not p or p[4] ~= attempt then
    -- A nack or release that was done before has brought the message back, as a lapsed lease has.
    if not again or outcome == 'reject' and not is_done(id) then lost[#lost + 1] = (i - 2) / 7 end
  elseif outcome == 'reject' then
    local text, more = entry_of(id)
    if text then
      local key = key_of(text)
      call('XADD', DEAD, '*', 'i', more.i or id, 'k', key, 't', more.t or '', 'n', attempt,
        'p', sub(text, #key + 2), 'h', more.h or '', 'd', ARGV[i + 6])
    end
    buried[#buried + 1] = id
  else
    back = true
    local tries = attempt
    if outcome == 'release' then
      tries = attempt - 1
      local count, last = string.match(call('HGET', BEGUN, id) or '', '^(%d+) (%d+)$')
      if tonumber(last) == attempt then call('HSET', BEGUN, id, count - 1 .. ' 0') end
    end
    put_back(id, nil, tries, delay > 0 and now + delay or nil)
  end
end
settle(buried)
if back then notify() end
return lost
