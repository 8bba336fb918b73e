from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tensor(_message.Message):
    __slots__ = ("dtype", "tensor_shape", "tensor_content")
    class Shape(_message.Message):
        __slots__ = ("dim",)
        class Dim(_message.Message):
            __slots__ = ("size",)
            SIZE_FIELD_NUMBER: _ClassVar[int]
            size: int
            def __init__(self, size: _Optional[int] = ...) -> None: ...
        DIM_FIELD_NUMBER: _ClassVar[int]
        dim: _containers.RepeatedCompositeFieldContainer[Tensor.Shape.Dim]
        def __init__(self, dim: _Optional[_Iterable[_Union[Tensor.Shape.Dim, _Mapping]]] = ...) -> None: ...
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_SHAPE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_CONTENT_FIELD_NUMBER: _ClassVar[int]
    dtype: int
    tensor_shape: Tensor.Shape
    tensor_content: bytes
    def __init__(self, dtype: _Optional[int] = ..., tensor_shape: _Optional[_Union[Tensor.Shape, _Mapping]] = ..., tensor_content: _Optional[bytes] = ...) -> None: ...

class SequenceRange(_message.Message):
    __slots__ = ("episode_id", "start", "end", "sparse")
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    episode_id: int
    start: int
    end: int
    sparse: bool
    def __init__(self, episode_id: _Optional[int] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., sparse: _Optional[bool] = ...) -> None: ...

class ChunkData(_message.Message):
    __slots__ = ("chunk_key", "sequence_range", "delta_encoded", "data", "data_tensors_len", "data_uncompressed_size")
    class Data(_message.Message):
        __slots__ = ("tensors",)
        TENSORS_FIELD_NUMBER: _ClassVar[int]
        tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
        def __init__(self, tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...
    CHUNK_KEY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_RANGE_FIELD_NUMBER: _ClassVar[int]
    DELTA_ENCODED_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DATA_TENSORS_LEN_FIELD_NUMBER: _ClassVar[int]
    DATA_UNCOMPRESSED_SIZE_FIELD_NUMBER: _ClassVar[int]
    chunk_key: int
    sequence_range: SequenceRange
    delta_encoded: bool
    data: ChunkData.Data
    data_tensors_len: int
    data_uncompressed_size: int
    def __init__(self, chunk_key: _Optional[int] = ..., sequence_range: _Optional[_Union[SequenceRange, _Mapping]] = ..., delta_encoded: _Optional[bool] = ..., data: _Optional[_Union[ChunkData.Data, _Mapping]] = ..., data_tensors_len: _Optional[int] = ..., data_uncompressed_size: _Optional[int] = ...) -> None: ...

class FlatTrajectory(_message.Message):
    __slots__ = ("columns",)
    class ChunkSlice(_message.Message):
        __slots__ = ("chunk_key", "offset", "length", "index")
        CHUNK_KEY_FIELD_NUMBER: _ClassVar[int]
        OFFSET_FIELD_NUMBER: _ClassVar[int]
        LENGTH_FIELD_NUMBER: _ClassVar[int]
        INDEX_FIELD_NUMBER: _ClassVar[int]
        chunk_key: int
        offset: int
        length: int
        index: int
        def __init__(self, chunk_key: _Optional[int] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...
    class Column(_message.Message):
        __slots__ = ("chunk_slices", "squeeze")
        CHUNK_SLICES_FIELD_NUMBER: _ClassVar[int]
        SQUEEZE_FIELD_NUMBER: _ClassVar[int]
        chunk_slices: _containers.RepeatedCompositeFieldContainer[FlatTrajectory.ChunkSlice]
        squeeze: bool
        def __init__(self, chunk_slices: _Optional[_Iterable[_Union[FlatTrajectory.ChunkSlice, _Mapping]]] = ..., squeeze: _Optional[bool] = ...) -> None: ...
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    columns: _containers.RepeatedCompositeFieldContainer[FlatTrajectory.Column]
    def __init__(self, columns: _Optional[_Iterable[_Union[FlatTrajectory.Column, _Mapping]]] = ...) -> None: ...

class PrioritizedItem(_message.Message):
    __slots__ = ("key", "table", "priority", "times_sampled", "flat_trajectory")
    KEY_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMES_SAMPLED_FIELD_NUMBER: _ClassVar[int]
    FLAT_TRAJECTORY_FIELD_NUMBER: _ClassVar[int]
    key: int
    table: str
    priority: float
    times_sampled: int
    flat_trajectory: FlatTrajectory
    def __init__(self, key: _Optional[int] = ..., table: _Optional[str] = ..., priority: _Optional[float] = ..., times_sampled: _Optional[int] = ..., flat_trajectory: _Optional[_Union[FlatTrajectory, _Mapping]] = ...) -> None: ...

class InsertStreamRequest(_message.Message):
    __slots__ = ("chunks", "items", "keep_chunk_keys")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    KEEP_CHUNK_KEYS_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkData]
    items: _containers.RepeatedCompositeFieldContainer[PrioritizedItem]
    keep_chunk_keys: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, chunks: _Optional[_Iterable[_Union[ChunkData, _Mapping]]] = ..., items: _Optional[_Iterable[_Union[PrioritizedItem, _Mapping]]] = ..., keep_chunk_keys: _Optional[_Iterable[int]] = ...) -> None: ...

class InsertStreamResponse(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, keys: _Optional[_Iterable[int]] = ...) -> None: ...

class Timeout(_message.Message):
    __slots__ = ("milliseconds",)
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    milliseconds: int
    def __init__(self, milliseconds: _Optional[int] = ...) -> None: ...

class SampleStreamRequest(_message.Message):
    __slots__ = ("table", "num_samples", "rate_limiter_timeout")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    RATE_LIMITER_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    table: str
    num_samples: int
    rate_limiter_timeout: Timeout
    def __init__(self, table: _Optional[str] = ..., num_samples: _Optional[int] = ..., rate_limiter_timeout: _Optional[_Union[Timeout, _Mapping]] = ...) -> None: ...

class SampleInfo(_message.Message):
    __slots__ = ("item", "probability", "table_size", "rate_limited")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    TABLE_SIZE_FIELD_NUMBER: _ClassVar[int]
    RATE_LIMITED_FIELD_NUMBER: _ClassVar[int]
    item: PrioritizedItem
    probability: float
    table_size: int
    rate_limited: bool
    def __init__(self, item: _Optional[_Union[PrioritizedItem, _Mapping]] = ..., probability: _Optional[float] = ..., table_size: _Optional[int] = ..., rate_limited: _Optional[bool] = ...) -> None: ...

class SampleStreamResponse(_message.Message):
    __slots__ = ("entries",)
    class SampleEntry(_message.Message):
        __slots__ = ("info", "data", "end_of_sequence")
        INFO_FIELD_NUMBER: _ClassVar[int]
        DATA_FIELD_NUMBER: _ClassVar[int]
        END_OF_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
        info: SampleInfo
        data: _containers.RepeatedCompositeFieldContainer[ChunkData]
        end_of_sequence: bool
        def __init__(self, info: _Optional[_Union[SampleInfo, _Mapping]] = ..., data: _Optional[_Iterable[_Union[ChunkData, _Mapping]]] = ..., end_of_sequence: _Optional[bool] = ...) -> None: ...
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[SampleStreamResponse.SampleEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[SampleStreamResponse.SampleEntry, _Mapping]]] = ...) -> None: ...

class Uint128(_message.Message):
    __slots__ = ("high", "low")
    HIGH_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    high: int
    low: int
    def __init__(self, high: _Optional[int] = ..., low: _Optional[int] = ...) -> None: ...

class RateLimiterCallStats(_message.Message):
    __slots__ = ("completed",)
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    completed: int
    def __init__(self, completed: _Optional[int] = ...) -> None: ...

class RateLimiterInfo(_message.Message):
    __slots__ = ("samples_per_insert", "min_diff", "max_diff", "min_size_to_sample", "insert_stats", "sample_stats")
    SAMPLES_PER_INSERT_FIELD_NUMBER: _ClassVar[int]
    MIN_DIFF_FIELD_NUMBER: _ClassVar[int]
    MAX_DIFF_FIELD_NUMBER: _ClassVar[int]
    MIN_SIZE_TO_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    INSERT_STATS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_STATS_FIELD_NUMBER: _ClassVar[int]
    samples_per_insert: float
    min_diff: float
    max_diff: float
    min_size_to_sample: int
    insert_stats: RateLimiterCallStats
    sample_stats: RateLimiterCallStats
    def __init__(self, samples_per_insert: _Optional[float] = ..., min_diff: _Optional[float] = ..., max_diff: _Optional[float] = ..., min_size_to_sample: _Optional[int] = ..., insert_stats: _Optional[_Union[RateLimiterCallStats, _Mapping]] = ..., sample_stats: _Optional[_Union[RateLimiterCallStats, _Mapping]] = ...) -> None: ...

class TableWorkerTime(_message.Message):
    __slots__ = ("running_ms", "sampling_ms", "inserting_ms", "sleeping_ms", "waiting_for_sampling_ms", "waiting_for_inserts_ms")
    RUNNING_MS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_MS_FIELD_NUMBER: _ClassVar[int]
    INSERTING_MS_FIELD_NUMBER: _ClassVar[int]
    SLEEPING_MS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_SAMPLING_MS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_INSERTS_MS_FIELD_NUMBER: _ClassVar[int]
    running_ms: int
    sampling_ms: int
    inserting_ms: int
    sleeping_ms: int
    waiting_for_sampling_ms: int
    waiting_for_inserts_ms: int
    def __init__(self, running_ms: _Optional[int] = ..., sampling_ms: _Optional[int] = ..., inserting_ms: _Optional[int] = ..., sleeping_ms: _Optional[int] = ..., waiting_for_sampling_ms: _Optional[int] = ..., waiting_for_inserts_ms: _Optional[int] = ...) -> None: ...

class TableInfo(_message.Message):
    __slots__ = ("max_size", "rate_limiter_info", "current_size", "name", "table_worker_time")
    MAX_SIZE_FIELD_NUMBER: _ClassVar[int]
    RATE_LIMITER_INFO_FIELD_NUMBER: _ClassVar[int]
    CURRENT_SIZE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TABLE_WORKER_TIME_FIELD_NUMBER: _ClassVar[int]
    max_size: int
    rate_limiter_info: RateLimiterInfo
    current_size: int
    name: str
    table_worker_time: TableWorkerTime
    def __init__(self, max_size: _Optional[int] = ..., rate_limiter_info: _Optional[_Union[RateLimiterInfo, _Mapping]] = ..., current_size: _Optional[int] = ..., name: _Optional[str] = ..., table_worker_time: _Optional[_Union[TableWorkerTime, _Mapping]] = ...) -> None: ...

class ServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerInfoResponse(_message.Message):
    __slots__ = ("tables_state_id", "table_info")
    TABLES_STATE_ID_FIELD_NUMBER: _ClassVar[int]
    TABLE_INFO_FIELD_NUMBER: _ClassVar[int]
    tables_state_id: Uint128
    table_info: _containers.RepeatedCompositeFieldContainer[TableInfo]
    def __init__(self, tables_state_id: _Optional[_Union[Uint128, _Mapping]] = ..., table_info: _Optional[_Iterable[_Union[TableInfo, _Mapping]]] = ...) -> None: ...
