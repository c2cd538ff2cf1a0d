import AVFoundation
import CoreImage
import MLXConvNeXtV2

/// The Mac's camera as a stream of images, of which only the newest waits.
final class Camera: NSObject, AVCaptureVideoDataOutputSampleBufferDelegate, @unchecked Sendable {
    // Only the queue touches the session and the continuation once `start` was called.
    let frames: AsyncStream<ImageInput>
    private let continuation: AsyncStream<ImageInput>.Continuation
    private let session = AVCaptureSession()
    private let queue = DispatchQueue(label: "camera")

    override init() {
        (frames, continuation) = AsyncStream.makeStream(of: ImageInput.self, bufferingPolicy: .bufferingNewest(1))
    }

    /// Asks for permission the first time; without it, or without a camera, the stream ends.
    func start() {
        Task {
            let isAllowed = await AVCaptureDevice.requestAccess(for: .video)
            queue.async { isAllowed ? self.open() : self.continuation.finish() }
        }
    }

    func stop() {
        queue.async {
            self.session.stopRunning()
            self.continuation.finish()
        }
    }

    private func open() {
        let output = AVCaptureVideoDataOutput()
        output.videoSettings = [kCVPixelBufferPixelFormatTypeKey as String: kCVPixelFormatType_32BGRA]
        output.setSampleBufferDelegate(self, queue: queue)
        guard let device = AVCaptureDevice.default(for: .video), let input = try? AVCaptureDeviceInput(device: device),
            session.canAddInput(input), session.canAddOutput(output)
        else { return continuation.finish() }
        session.addInput(input)
        session.addOutput(output)
        session.startRunning()
    }

    func captureOutput(_: AVCaptureOutput, didOutput buffer: CMSampleBuffer, from _: AVCaptureConnection) {
        // Copied here, because the camera takes its buffers back.
        guard let pixels = CMSampleBufferGetImageBuffer(buffer), let image = try? PixelImage(pixels) else { return }
        continuation.yield(.pixels(image))
    }
}
