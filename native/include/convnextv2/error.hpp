// The one exception of the library, but for std::bad_alloc: a status that a program can act on, and a sentence that
// says what to do.
#pragma once

#include <stdexcept>
#include <string>

#include "convnextv2_image.h"

namespace convnextv2 {

class CONVNEXTV2_API Error : public std::runtime_error {
 public:
  Error(convnextv2_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  convnextv2_status status() const noexcept { return status_; }

 private:
  convnextv2_status status_;
};

}  // namespace convnextv2
