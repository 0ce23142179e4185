-- ARGV: none. Returns the names of the groups.
local names = {}
for i, g in ipairs(all_groups()) do names[i] = g.name end
return names
