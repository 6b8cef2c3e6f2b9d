-- Rows of one partition that end, removed by the worker that holds its claim, while nobody else moves the watermark.
--
-- KEYS, ARGV[1…2] and what is returned: as in fill.lua
-- ARGV[3…]  the users of the rows
if redis.call('GET', KEYS[2]) ~= ARGV[2] then
  return 0
end
if (redis.call('HGET', KEYS[1], 'offset') or '') ~= ARGV[1] then
  return -1
end
for row = 4, #KEYS do
  redis.call('DEL', KEYS[row])
  redis.call('SREM', KEYS[3], ARGV[row - 1])
end
return 1
