-- The usual messages, with nothing to be kept or limited, need nothing of all that follows. Whether the
-- namespace is in order and of this format, the largest payload tells: else it is unknown.
if ARGV[1] == 'plain' then
  local A, xadd, messages = ARGV, redis.pcall, string.sub(KEYS[1], 1, -4) .. 'messages'
  local META = string.sub(KEYS[1], 1, -4) .. 'meta'
  local meta = redis.pcall('HMGET', META, 'largest', 'keep')
  local largest = tonumber(meta[1] or '')
  if largest and not meta[2] then
    local first, before, problem = 7 + tonumber(A[6]), largest, nil
    local accepted = #A - first + 1
    for i = first, #A do
      local text = A[i]
      local id = xadd('XADD', messages, '*', 'm', text)
      if type(id) == 'table' then
        accepted, problem = i - first, id.err
        break
      end
      if #text > largest then largest = #text end
    end
    if largest > before then redis.call('HSET', META, 'largest', largest) end
    if not problem then return accepted end
    if accepted > 0 then return {accepted, problem, 0} end
  end
end

