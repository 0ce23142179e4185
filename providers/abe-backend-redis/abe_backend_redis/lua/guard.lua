
if type(format) == 'table' and not string.find(format.err, 'WRONGTYPE', 1, true) then return format end
if format and format ~= '2' then
  return redis.error_reply('FORMAT ' .. (type(format) == 'table' and '1' or format))
end

