# Included by CMake right after llama.cpp's own project() call (CMAKE_PROJECT_llama.cpp_INCLUDE).
# llama-cpp-python forces LLAMA_BUILD_COMMON on in the cache, although it uses nothing of that library;
# a normal variable of the same name hides the cache entry.
set(LLAMA_BUILD_COMMON OFF)

# GCC drops the stores of AMX's tile configuration in ggml's amx/mmq.cpp, so quantized models crash at their
# first token on processors that have AMX (llama.cpp issue 20824). Without it AVX-512 does the work.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  add_compile_options(-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
endif()
