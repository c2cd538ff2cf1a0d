#include "../cpp/include/convnextv2_image.h"
