#include <convnextv2.h>
