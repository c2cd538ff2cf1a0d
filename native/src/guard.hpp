// Exceptions become a status and a sentence at the border to C.
#pragma once

#include <new>

#include "convnextv2/error.hpp"

namespace convnextv2 {

CONVNEXTV2_API void set_message(const char* message) noexcept;

template <typename F>
convnextv2_status guarded(F&& body) noexcept {
  try {
    body();
    return CONVNEXTV2_OK;
  } catch (const Error& error) {
    set_message(error.what());
    return error.status();
  } catch (const std::bad_alloc&) {
    set_message("there is not enough memory");
    return CONVNEXTV2_NO_MEMORY;
  } catch (const std::exception& error) {
    set_message(error.what());
  } catch (...) {
    set_message("an unknown error");
  }
  return CONVNEXTV2_FAILED;
}

}  // namespace convnextv2
