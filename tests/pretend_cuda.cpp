// A device `cuda:0` over host memory for a CPU build of torch: see pretend_cuda.py.
//
// Whatever reaches the CUDA dispatch key goes through `boxed`: checked as CUDA checks it, counted,
// computed by the CPU kernel on a CPU tensor that shares the memory, and handed back as a tensor
// of the device.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_is_zerotensor.h>
#include <ATen/ops/_local_scalar_dense_ops.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/copy_ops.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/zeros.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>

namespace {
using at::Tensor;
using c10::Device;
using c10::DeviceType;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using std::string;
using Lock = std::lock_guard<std::mutex>;
template <class T> using Maybe = std::optional<T>;

const Device CUDA0(DeviceType::CUDA, 0);
const DispatchKeySet ON_CPU(DispatchKey::CPU), ON_CUDA(DispatchKey::CUDA);

// --- counts

std::atomic<int64_t> launches{0}, waits{0}, bytes_now{0}, bytes_peak{0};
std::atomic<int64_t> products_16{0}, products_32{0};  // operations of matrix products, by bits
std::atomic<bool> counting{true};
std::map<string, int64_t> launches_of, waits_of;
std::mutex names_lock;

void grow(int64_t n) {
  int64_t now = (bytes_now += n), peak = bytes_peak;
  while (now > peak && !bytes_peak.compare_exchange_weak(peak, now)) {
  }
}
void launched(const string& name, int64_t n = 1) {
  if (!counting) return;
  launches += n;
  Lock guard(names_lock);
  launches_of[name] += n;
}
void waited(const string& name) {
  if (!counting) return;
  waits += 1;
  Lock guard(names_lock);
  waits_of[name] += 1;
}

// --- device and memory

struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, CUDA0); }
  Device exchangeDevice(Device) const override { return CUDA0; }
  Device getDevice() const override { return CUDA0; }
  c10::Stream getStream(Device) const noexcept override { return stream(); }
  c10::Stream getNewStream(Device, int = 0) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  c10::Stream getDefaultStream(Device) const override { return stream(); }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag)
      const override {
    *event = (void*)this;
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};

struct Block {
  void* memory;
  int64_t size;
};
void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  c10::free_cpu(block->memory);
  bytes_now -= block->size;
  delete block;
}
struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    if (!n) return {nullptr, CUDA0};
    void* memory = c10::alloc_cpu(n);
    grow(n);
    return {memory, new Block{memory, (int64_t)n}, &free_block, CUDA0};
  }
  void copy_data(void* to, const void* from, std::size_t n) const override {
    default_copy_data(to, from, n);
  }
};
Allocator allocator;

// A CPU tensor over the memory of a device tensor keeps the device's storage alive, and a device
// tensor over what a CPU kernel allocated keeps that.
struct Owner {
  c10::Storage storage;
  int64_t size;
};
void free_alias(void* context) { delete static_cast<Owner*>(context); }
void free_result(void* context) {
  auto* owner = static_cast<Owner*>(context);
  bytes_now -= owner->size;
  delete owner;
}

Tensor with_storage(c10::Storage storage, DispatchKey key, const Tensor& like) {
  DispatchKeySet keys(key);
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, like.dtype());
  auto* inside = made.unsafeGetTensorImpl();
  inside->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) inside->set_wrapped_number(true);
  return made;
}

c10::Storage storage_over(const c10::Storage& of, int64_t owned, c10::DeleterFnPtr free,
                          Device device, c10::Allocator* of_device) {
  void* memory = const_cast<void*>(of.data());
  c10::DataPtr data(memory, new Owner{of, owned}, free, device);
  return c10::Storage(c10::Storage::use_byte_size_t(), of.nbytes(), std::move(data), of_device,
                      true);
}

Tensor to_cpu(const Tensor& t) {
  if (t._is_zerotensor()) return at::zeros(t.sizes(), t.options().device(c10::kCPU));
  Device cpu(DeviceType::CPU);
  auto alias = storage_over(t.storage(), 0, &free_alias, cpu, c10::GetCPUAllocator());
  auto made = with_storage(alias, DispatchKey::CPU, t);
  if (t.is_conj()) made._set_conj(true);
  if (t.is_neg()) made._set_neg(true);
  return made;
}

Tensor to_device(const Tensor& t) {
  const auto& data = t.storage().data_ptr();
  if (data.get_deleter() == &free_alias)  // a view of an argument
    return with_storage(static_cast<Owner*>(data.get_context())->storage, DispatchKey::CUDA, t);
  int64_t n = t.storage().nbytes();
  grow(n);
  auto made = storage_over(t.storage(), n, &free_result, CUDA0, &allocator);
  return with_storage(made, DispatchKey::CUDA, t);
}

bool on_device(const Tensor& t) { return t.defined() && t.device().is_cuda(); }
Tensor lowered(const Tensor& t) { return on_device(t) ? to_cpu(t) : t; }
Tensor raised(const Tensor& t) {
  return t.defined() && t.device().is_cpu() ? to_device(t) : t;
}

// --- the device's random numbers: those of a CPU generator of its own

struct Generator final : c10::GeneratorImpl {
  at::Generator inner;
  explicit Generator(at::Generator of)
      : c10::GeneratorImpl(CUDA0, DispatchKeySet(DispatchKey::CUDA)), inner(std::move(of)) {}
  Generator() : Generator(at::detail::createCPUGenerator(67280421310721ULL)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { inner.set_offset(offset); }
  uint64_t get_offset() const override { return inner.get_offset(); }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_state(const c10::TensorImpl& state) override {
    inner.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return inner.unsafeGetGeneratorImpl()->get_state();
  }
  Generator* clone_impl() const override { return new Generator(inner.clone()); }
};
at::Generator device_random;  // a CPU generator
std::mutex random_lock;

const at::Generator& default_generator() {
  static at::Generator shared = at::make_generator<Generator>(device_random);
  return shared;
}

// --- what torch asks to learn whether there is a CUDA device

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  int getNumGPUs() const override { return 1; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  Device getDeviceFromPtr(void*) const override { return CUDA0; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
  const at::Generator& getDefaultGenerator(c10::DeviceIndex = -1) const override {
    return default_generator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex = -1) const override {
    return at::make_generator<Generator>();
  }
};

// --- every operator

const std::set<string> MAY_MIX = {"aten::copy_", "aten::_copy_from",
    "aten::_copy_from_and_resize", "aten::set_.source_Tensor"};
// the size of the result, or the result itself, is a number that the host needs
const std::set<string> WAITING = {"aten::nonzero", "aten::masked_select", "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::equal",
    "aten::repeat_interleave.Tensor", "aten::is_nonzero"};
// where CUDA does not read a scalar from the host's memory
const std::set<string> NO_SCALARS = {"aten::mm", "aten::bmm", "aten::addmm", "aten::cat",
    "aten::gather", "aten::index_select", "aten::embedding", "aten::native_layer_norm",
    "aten::native_batch_norm", "aten::convolution", "aten::scatter_.src", "aten::scatter_add_"};
// whose kernels add in any order, and refuse under torch.use_deterministic_algorithms
const std::set<string> UNORDERED = {"aten::_adaptive_avg_pool2d_backward",
    "aten::adaptive_max_pool2d_backward", "aten::upsample_linear1d_backward",
    "aten::upsample_bilinear2d_backward", "aten::upsample_bicubic2d_backward",
    "aten::_upsample_bilinear2d_aa_backward", "aten::reflection_pad1d_backward",
    "aten::reflection_pad2d_backward", "aten::nll_loss2d_forward", "aten::histc", "aten::put_",
    "aten::grid_sampler_2d_backward", "aten::kthvalue", "aten::median.dim", "aten::cumsum",
    "aten::cumsum_"};

void refuse_unordered(const string& name, const Tensor& first) {
  if (!at::globalContext().deterministicAlgorithms() || !UNORDERED.count(name)) return;
  bool sums = name.rfind("aten::cumsum", 0) == 0;  // whole numbers can be added in any order
  TORCH_CHECK(sums && first.defined() && !first.is_floating_point(), name,
      " does not have a deterministic implementation, but you set "
      "'torch.use_deterministic_algorithms(True)'");
}

int64_t kernels(const string& name, int64_t members) {  // a list of tensors: a hundred a launch
  for (const char* start : {"aten::_foreach", "aten::_fused_adam", "aten::_fused_sgd"})
    if (name.rfind(start, 0) == 0) return 1 + members / 100;
  return 1;
}

int64_t row(const Tensor& t) { return t.size(-1); }  // numbers in a row
int64_t in_filter(const Tensor& weight) { return weight.numel() / weight.size(0); }

// Additions and multiplications of a matrix product or convolution, before it runs.
int64_t operations(const string& name, const std::vector<Tensor>& t, const IValue& last) {
  if (name == "aten::mm" || name == "aten::bmm") return 2 * t[0].numel() * row(t[1]);
  if (name == "aten::addmm" || name == "aten::baddbmm") return 2 * t[1].numel() * row(t[2]);
  if (name == "aten::convolution_backward") {  // one for the input, one for the weights
    auto asked = last.toBoolList();
    return 2 * t[0].numel() * in_filter(t[2]) * (int64_t(asked[0]) + int64_t(asked[1]));
  }
  return 0;
}
void computed(int64_t n, const Tensor& factor) {
  (factor.element_size() == 2 ? products_16 : products_32) += n;
}

// `mm` arrives as `mm.out`, with a result that torch allocated: the same kernel.
string plain_name(const c10::OperatorHandle& op) {
  const auto name = op.operator_name().name;
  string overload = op.operator_name().overload_name;
  for (const string end : {"out", "grad_input", "values"}) {
    if (overload == end) return name;
    auto at = overload.size() - std::min(overload.size(), end.size() + 1);
    if (overload.compare(at, string::npos, "_" + end) == 0) overload.resize(at);
  }
  return overload.empty() ? name : name + "." + overload;
}

struct Arguments {
  std::vector<Tensor> tensors;
  std::vector<std::vector<Tensor>> lists;
  bool on_device = false, asks_device = false, asks_cpu = false, own_random = false;
  int64_t members = 0;
  string host_tensor;  // name of an argument that lies on the host where it must not

  Arguments(const c10::OperatorHandle& op, const string& name, torch::jit::Stack* stack) {
    const auto& all = op.schema().arguments();
    const size_t n = all.size(), start = stack->size() - n;
    tensors.resize(n);
    lists.resize(n);
    for (size_t i = 0; i < n; i++) {
      IValue& v = (*stack)[start + i];
      if (v.isTensor()) {
        look(tensors[i] = v.toTensor(), all[i].name(), name);
        v = IValue(lowered(tensors[i]));
      } else if (v.isTensorList()) {
        c10::List<Tensor> low;
        for (const Tensor& t : v.toTensorList()) {
          look(t, all[i].name(), name);
          lists[i].push_back(t);
          low.push_back(lowered(t));
          members++;
        }
        if (!low.empty()) v = IValue(low);
      } else if (v.isOptionalTensorList()) {  // of x[i]: those on the host are moved, as on CUDA
        c10::List<Maybe<Tensor>> low;
        auto indices = v.toOptionalTensorList();
        for (size_t k = 0; k < indices.size(); k++) {
          Maybe<Tensor> t = indices.get(k);
          bool there = t && t->defined();
          on_device |= there && t->device().is_cuda();
          if (there && (t->scalar_type() == at::kBool || t->scalar_type() == at::kByte))
            waited(name + " with a boolean mask");
          low.push_back(there ? Maybe<Tensor>(lowered(*t)) : std::nullopt);
        }
        if (!low.empty()) v = IValue(low);
      } else if (v.isDevice()) {
        (v.toDevice().is_cuda() ? asks_device : asks_cpu) = true;
        v = IValue(Device(DeviceType::CPU));
      } else if (v.isGenerator() && v.toGenerator().defined()) {
        TORCH_CHECK(!v.toGenerator().device().is_cpu(),
            "Expected a 'cuda' device type for generator but found 'cpu' (", name, ")");
        own_random = true;
        v = IValue(static_cast<Generator*>(v.toGenerator().unsafeGetGeneratorImpl())->inner);
      }
    }
    TORCH_CHECK(!own_random || on_device || asks_device,
        "Expected a 'cpu' device type for generator but found 'cuda' (", name, ")");
    TORCH_CHECK(!on_device || host_tensor.empty() || MAY_MIX.count(name),
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 "
        "and cpu! (argument ", host_tensor, " of ", name, ")");
  }

  void look(const Tensor& t, const string& argument, const string& name) {
    if (!t.defined()) return;
    if (t.device().is_cuda()) on_device = true;
    else if (t.device().is_cpu() && (t.dim() > 0 || NO_SCALARS.count(name)))
      host_tensor = argument;
  }
};

// An argument that was written: the alias wrote the same memory, unless the kernel resized it.
void settle(const Tensor& mine, const Tensor& written) {
  if (!on_device(mine)) return;
  const auto &at = mine.storage(), &now = written.storage();
  bool same_shape = written.sizes() == mine.sizes() && written.strides() == mine.strides();
  if (!same_shape && now.data() == at.data() && now.nbytes() == at.nbytes()) {
    auto* inside = mine.unsafeGetTensorImpl();
    inside->set_sizes_and_strides(written.sizes(), written.strides(), written.storage_offset());
  } else if (!same_shape) {
    at::native::resize_(mine, written.sizes());
    to_cpu(mine).copy_(written);
  } else if (now.data() != at.data() && mine.numel()) {
    to_cpu(mine).copy_(written);
  }
}

// Draws come from the device's random state, never from the host's.
void with_device_random(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Lock guard(random_lock);
  auto host = at::detail::getDefaultCPUGenerator();
  auto before = host.get_state();
  auto put_back = [&] {
    device_random.set_state(host.get_state());
    host.set_state(before);
  };
  host.set_state(device_random.get_state());
  try {
    op.redispatchBoxed(ON_CPU, stack);
  } catch (...) {
    put_back();
    throw;
  }
  put_back();
}

void boxed(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto name = plain_name(op);
  const size_t n = schema.arguments().size();
  const Arguments in(op, name, stack);
  if (in.on_device && n) refuse_unordered(name, in.tensors[0]);
  if (auto product = operations(name, in.tensors, n ? stack->back() : IValue()))
    computed(product, in.tensors[1]);
  const bool to_be_raised = (in.on_device || in.asks_device) && !in.asks_cpu;
  std::vector<IValue> low(stack->end() - n, stack->end());
  launched(name, kernels(name, in.members));
  if (WAITING.count(name)) waited(name);
  if (!in.own_random && op.hasTag(at::Tag::nondeterministic_seeded))
    with_device_random(op, stack);
  else
    op.redispatchBoxed(ON_CPU, stack);
  auto written = [](const auto& argument) {
    return argument.alias_info() && argument.alias_info()->isWrite();
  };
  for (size_t i = 0; i < n; i++) {
    if (!written(schema.arguments()[i])) continue;
    if (in.tensors[i].defined() && low[i].isTensor()) settle(in.tensors[i], low[i].toTensor());
    if (low[i].isTensorList()) {
      auto list = low[i].toTensorList();
      for (size_t k = 0; k < list.size(); k++) settle(in.lists[i][k], list.get(k));
    }
  }
  const size_t m = schema.returns().size(), out = stack->size() - m;
  if (name == "aten::convolution")
    computed(2 * stack->back().toTensor().numel() * in_filter(in.tensors[1]), in.tensors[1]);
  for (size_t r = 0; r < m; r++) {
    IValue& v = (*stack)[out + r];
    const auto& result = schema.returns()[r];
    bool done = false;
    for (size_t i = 0; i < n && !done && written(result); i++) {
      const auto& argument = schema.arguments()[i];
      done = written(argument) && in.tensors[i].defined() &&
             argument.alias_info()->beforeSets() == result.alias_info()->beforeSets();
      if (done) v = IValue(in.tensors[i]);
    }
    if (done || !to_be_raised) continue;
    if (v.isTensor()) {
      v = IValue(raised(v.toTensor()));
    } else if (v.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : v.toTensorList()) list.push_back(raised(t));
      v = IValue(list);
    }
  }
}

// --- kernels that make or reshape storage, and copies

using Dtype = Maybe<at::ScalarType>;
using Layout = Maybe<at::Layout>;
using Place = Maybe<Device>;
using Sizes = c10::IntArrayRef;

Tensor empty(Sizes size, Dtype dtype, Layout, Place, Maybe<bool>, Maybe<c10::MemoryFormat> form) {
  auto type = c10::dtype_or_default(dtype);
  return at::detail::empty_generic(size, &allocator, ON_CUDA, type, form);
}
Tensor empty_strided(Sizes size, Sizes stride, Dtype dtype, Layout, Place, Maybe<bool>) {
  auto type = c10::dtype_or_default(dtype);
  return at::detail::empty_strided_generic(size, stride, &allocator, ON_CUDA, type);
}
struct Nothing final : c10::Allocator {
  c10::DataPtr allocate(size_t) override { return {nullptr, nullptr, [](void*) {}, CUDA0}; }
  void copy_data(void*, const void*, std::size_t) const override {}
};
Tensor zero_tensor(Sizes size, Dtype dtype, Layout, Place, Maybe<bool>) {
  static Nothing nothing;
  auto keys = ON_CUDA | DispatchKeySet(DispatchKey::ZeroTensor);
  auto type = c10::dtype_or_default(dtype);
  return at::detail::empty_generic(size, &nothing, keys, type, std::nullopt);
}
Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
  launched("aten::copy_");
  if (on_device(source) && !on_device(self)) waited("copy to the host");
  Tensor to = lowered(self);
  at::_ops::copy_::redispatch(ON_CPU, to, lowered(source), non_blocking);
  return self;
}
Tensor copy_from(const Tensor& self, const Tensor& to, bool non_blocking) {
  Tensor target = to;
  copy_(target, self, non_blocking);
  return to;
}
Tensor copy_from_and_resize(const Tensor& self, const Tensor& to) {
  at::native::resize_(to, self.sizes());
  return copy_from(self, to, false);
}
at::Scalar local_scalar(const Tensor& self) {
  waited("item");
  return at::_ops::_local_scalar_dense::redispatch(ON_CPU, to_cpu(self));
}
Tensor& set_source(Tensor& self, at::Storage source) { return at::native::set_(self, source); }
const Tensor& resize_(const Tensor& self, Sizes size, Maybe<c10::MemoryFormat> form) {
  return at::native::resize_(self, size, form);
}

// Composites that would choose a CUDA-only kernel by the device, or spread over many launches.
const char* const WHOLE[] = {"convolution", "convolution_backward", "_foreach_add_.List",
    "_foreach_add_.Scalar", "_foreach_add.List", "_foreach_add.Scalar", "_foreach_mul_.Scalar",
    "_foreach_mul.Scalar", "_foreach_mul_.List", "_foreach_mul.List", "_foreach_mul_.Tensor",
    "_foreach_mul_.ScalarList", "_foreach_mul.ScalarList", "_foreach_sub_.List",
    "_foreach_sub.List", "_foreach_sub.Scalar", "_foreach_addcmul_.Scalar",
    "_foreach_addcdiv_.ScalarList", "_foreach_addcdiv_.Scalar", "_foreach_addcdiv_.Tensor",
    "_foreach_div_.List", "_foreach_div_.ScalarList", "_foreach_div_.Scalar",
    "_foreach_div.List", "_foreach_sqrt", "_foreach_sqrt_", "_foreach_lerp_.Scalar",
    "_foreach_lerp_.List", "_foreach_lerp.Scalar", "_foreach_norm.Scalar", "_foreach_copy_",
    "_foreach_zero_", "_foreach_neg", "_foreach_neg_", "_foreach_maximum_.List",
    "_foreach_add_.Tensor", "_foreach_add_.ScalarList", "_foreach_add.ScalarList",
    "_foreach_reciprocal", "_foreach_reciprocal_", "_foreach_pow.ScalarAndTensor",
    "_foreach_clone"};

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&boxed>());
}
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("set_.source_Storage", &set_source);
  m.impl("set_", &at::native::set_cpu_);
  m.impl("_efficientzerotensor", &zero_tensor);
  m.impl("copy_", &copy_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  for (const char* name : WHOLE)
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&boxed>());
}

// --- what pretend_cuda.py calls

string lines(const std::map<string, int64_t>& counts) {
  string text;
  for (auto& [name, n] : counts) text += name + "\t" + std::to_string(n) + "\n";
  return text;
}
TORCH_LIBRARY(pretend_cuda, m) {
  m.def("counts() -> int[]", []() {
    return std::vector<int64_t>{launches, waits, bytes_now, bytes_peak, products_16, products_32};
  });
  m.def("names() -> str[]", []() {
    Lock guard(names_lock);
    return std::vector<string>{lines(launches_of), lines(waits_of)};
  });
  m.def("reset() -> ()", []() {
    Lock guard(names_lock);
    launches = waits = products_16 = products_32 = 0;
    launches_of.clear();
    waits_of.clear();
  });
  m.def("reset_peak() -> ()", []() { bytes_peak = bytes_now.load(); });
  m.def("count(bool on) -> ()", [](bool on) { counting = on; });
  m.def("launched(str name, int n) -> ()", [](string name, int64_t n) { launched(name, n); });
  m.def("new_generator() -> Generator?", []() {
    return Maybe<at::Generator>(at::make_generator<Generator>());
  });
  m.def("default_generator() -> Generator?", []() {
    return Maybe<at::Generator>(default_generator());
  });
}

struct Begin {
  Begin() {
    c10::SetAllocator(DeviceType::CUDA, &allocator, 255);
    // torch may have asked while it was imported: its answer, which holds nothing, becomes ours
    static Hooks ours{at::CUDAHooksArgs{}};
    auto* theirs = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
    *reinterpret_cast<void**>(theirs) =
        *reinterpret_cast<void**>(static_cast<at::CUDAHooksInterface*>(&ours));
    static Guard guard;
    c10::impl::registerDeviceGuard(DeviceType::CUDA, &guard);
    device_random = at::detail::createCPUGenerator(12345);
  }
} begin;
}  // namespace
