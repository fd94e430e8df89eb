-- As overload.lua, but each connection rests between two requests: so many connections ask for so much and
-- no more, however soon they are refused.
dofile(debug.getinfo(1).source:match("^@(.*/)") .. "overload.lua")

function delay()
  return 50
end
