// Read precompiled by every source of the executor: parsing this header is most of its build time.
#include <ATen/ATen.h>
