# Read by CMake before llama.cpp's own files. There, ggml waits for its code for every processor of an architecture, of
# which there are 8 to 14; only those that are named as targets are built.
function(add_dependencies target)
  if(NOT target STREQUAL "ggml")
    _add_dependencies(${ARGV})
  endif()
endfunction()
