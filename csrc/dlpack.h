// The part of DLPack 1.3 (https://github.com/dmlc/dlpack, Apache-2.0) that exchange.h needs: tensors, and the C
// exchange API that a framework publishes as `__dlpack_c_exchange_api__` of its tensor type.
#pragma once

#include <cstdint>

namespace wino {
namespace dlpack {

constexpr uint32_t kMajorVersion = 1;

struct Version {
  uint32_t major, minor;
};

enum DeviceType : int32_t { kCpu = 1 };

enum DataTypeCode : uint8_t { kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4, kBool = 6 };

struct Device {
  int32_t type, id;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

struct ManagedTensor {
  Version version;
  void* manager_context;
  void (*deleter)(ManagedTensor*);
  uint64_t flags;
  Tensor tensor;
};

// Functions return 0, or -1 with a Python error set.
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  int (*allocate)(Tensor* prototype, ManagedTensor** out, void* error_context,
                  void (*set_error)(void* error_context, const char* kind, const char* message));
  int (*managed_from_object)(void* object, ManagedTensor** out);
  int (*to_object)(ManagedTensor* tensor, void** object);
  int (*view_of_object)(void* object, Tensor* out);  // borrowed; may be null
  int (*current_stream)(int32_t device_type, int32_t device_id, void** stream);
};

}  // namespace dlpack
}  // namespace wino
